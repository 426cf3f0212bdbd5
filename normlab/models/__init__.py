"""Networks that take any normalization layer and know nothing of its kind."""

from typing import Annotated

from pydantic import Field

from .cnn import CNN as CNN
from .cnn import CNNSpec as CNNSpec
from .mlp import MLP as MLP
from .mlp import MLPSpec as MLPSpec
from .resnet import ResNet as ResNet
from .resnet import ResNetSpec as ResNetSpec
from .vit import ViT as ViT
from .vit import ViTSpec as ViTSpec

ModelSpec = Annotated[MLPSpec | CNNSpec | ResNetSpec | ViTSpec, Field(discriminator="name")]
