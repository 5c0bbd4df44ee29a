"""What we use of transformers beside its documented interface: how a folder's tensors are renamed, converted and loaded."""

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming, rename_source_key
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

__all__ = [
    "ConversionOps",
    "HfQuantizer",
    "QuantizationConfigMixin",
    "WeightConverter",
    "WeightRenaming",
    "get_model_conversion_mapping",
    "register_quantization_config",
    "register_quantizer",
    "rename_source_key",
]
