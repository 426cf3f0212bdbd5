"""How tests compile: in little time, or as users do where the last bits are what is tested."""

from importlib.metadata import version

AS_TESTS: dict[str, int | bool] = {"xla_backend_optimization_level": 0}
AS_USERS: dict[str, int | bool] = {"xla_backend_optimization_level": 3}
if version("jaxlib").startswith("0.10."):
    # The former way to emit fusions compiles three times as fast. Later versions have the new one
    # alone, and end at an option that they do not know.
    AS_TESTS["xla_cpu_use_fusion_emitters"] = False
    AS_USERS["xla_cpu_use_fusion_emitters"] = True
