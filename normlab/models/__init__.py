"""Networks that take any normalization layer and know nothing of its kind."""

from .adapt import network_of as network_of
from .cnn import CNN as CNN
from .cnn import CNNSpec as CNNSpec
from .gpt import GPT as GPT
from .gpt import GPTSpec as GPTSpec
from .mlp import MLP as MLP
from .mlp import MLPSpec as MLPSpec
from .network import Network as Network
from .network import Roles as Roles
from .registered import MODELS as MODELS
from .registered import ModelSpec as ModelSpec
from .registered import RegisteredModelSpec as RegisteredModelSpec
from .registered import model_spec_type as model_spec_type
from .registered import register_model as register_model
from .resnet import ResNet as ResNet
from .resnet import ResNetSpec as ResNetSpec
from .vit import ViT as ViT
from .vit import ViTSpec as ViTSpec
