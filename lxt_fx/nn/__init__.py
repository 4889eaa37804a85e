"""Rules as modules, for models written by hand.

`Linear`, `Softmax`, ... take the arguments and the state dict of torch's own modules of that name and follow the rules of
`lxt_fx.functional`. `Epsilon`, `Uniform`, `UniformEpsilon`, `Identity`, `Stop` and `Taylor` put a rule around any module or
function. `use(model, form=..., epsilon=...)` sets form and epsilon of all of them inside a model.
"""

from lxt_fx.nn.attention import MultiheadAttention
from lxt_fx.nn.modules import (
    ELU,
    GELU,
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    Conv1d,
    Conv2d,
    Conv3d,
    GroupNorm,
    Hardswish,
    LayerNorm,
    LeakyReLU,
    Linear,
    Mish,
    ReLU,
    ReLU6,
    RMSNorm,
    RuleModule,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
    use,
)
from lxt_fx.nn.wrappers import Epsilon, Identity, RuleWrapper, Stop, Taylor, Uniform, UniformEpsilon

__all__ = [
    "ELU",
    "GELU",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "Epsilon",
    "GroupNorm",
    "Hardswish",
    "Identity",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "Mish",
    "MultiheadAttention",
    "RMSNorm",
    "ReLU",
    "ReLU6",
    "RuleModule",
    "RuleWrapper",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Stop",
    "Tanh",
    "Taylor",
    "Uniform",
    "UniformEpsilon",
    "use",
]
