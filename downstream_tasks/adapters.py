"""Low-rank adapters (LoRA, Hu et al. 2021) in the attention of a network, by the package ``peft``.

The encoder stays as it is; beside ``attn.qkv`` and ``attn.proj`` of every block a product of two
small matrices is trained, and the head with its norm. What is stored is the merged, plain network,
which every reader of checkpoints knows, and the adapters alone as PEFT writes them.
"""

from importlib import import_module
from pathlib import Path
from types import ModuleType

from safetensors.torch import save
from torch import Tensor, nn

from downstream_tasks.config import FineTuneConfig
from src.utils.errors import UserError
from src.utils.files import replacing

FOLDER = "adapters"
_TARGETS = r"encoder\.blocks\.\d+\.attn\.(qkv|proj)"
_HEAD = ("fc_norm", "head")
_PEFT_PREFIX, _ADAPTER, _BASE = "base_model.model.", ".default", ".base_layer"


def require_peft() -> ModuleType:
    """The package, which only adapters need; :class:`UserError` where it is missing."""
    try:
        return import_module("peft")
    except ImportError as error:
        raise UserError(
            "fine_tune.lora_rank needs the package peft, which is not installed: "
            "pip install peft. Or leave it out to train the whole network."
        ) from error


def add_adapters(model: nn.Module, ft: FineTuneConfig) -> None:
    """Put adapters of ``ft.lora_rank`` into ``model``; from now on they and its head are trained.

    They begin as zero: the network gives what it gave before.
    """
    require_peft().inject_adapter_in_model(_lora_config(ft), model)
    for name in _HEAD:
        getattr(model, name).requires_grad_(True)


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """State of the plain network that gives what ``model`` gives: ``W + alpha / rank * B A``.

    Of a network without adapters its own state.
    """
    layers = {name: m for name, m in model.named_modules() if hasattr(m, "get_delta_weight")}
    state = {}
    for name, value in model.state_dict().items():
        layer, _, rest = name.rpartition(_BASE)
        if layer not in layers:
            if not any(name.startswith(f"{other}.") for other in layers):
                state[name] = value
            continue
        if rest == ".weight":
            value = value + layers[layer].get_delta_weight(_ADAPTER[1:])
        state[layer + rest] = value
    return state


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Adapters and head by name: all that training changes."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def write_adapters(folder: Path, model: nn.Module, ft: FineTuneConfig) -> None:
    """Write adapters and head as ``peft.PeftModel.from_pretrained`` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    _lora_config(ft, modules_to_save=list(_HEAD)).save_pretrained(str(folder))
    arrays = {
        _PEFT_PREFIX + name.replace(_ADAPTER, ""): value.cpu().contiguous()
        for name, value in trained_state(model).items()
    }
    with replacing(folder / "adapter_model.safetensors") as file:
        file.write(save(arrays, {"format": "pt"}))


def _lora_config(ft: FineTuneConfig, **more: list[str]) -> object:
    return require_peft().LoraConfig(
        r=ft.lora_rank, lora_alpha=ft.alpha, target_modules=_TARGETS, **more
    )
