"""Models run by transformers: the base, this project's artifacts, and those of libraries that transformers integrates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from threading import local

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

import quant.transformers_format  # noqa: F401  registers the format of this project's artifacts
from quant.errors import InputError
from quant.kernels.precision import using
from quant.model.architectures import architecture_of
from quant.model.artifact_format import METHOD
from quant.model.checkpoint import Checkpoint
from quant.model.opening import opened_by_transformers
from quant.runners import Options, StoredTensor
from quant.runners.bfloat16 import compute_in_float32, has_bfloat16
from quant.runners.compiled import CompiledDecoder
from quant.tensor.products import FastProducts


class Runner:
    """A model that transformers opens from a folder, on a CPU or a GPU."""

    def __init__(self, folder: Path, options: Options):
        if options.threads:
            torch.set_num_threads(options.threads)
        disable_progress_bar()
        checkpoint = Checkpoint(folder)  # checks the headers before transformers reads them
        self._architecture = architecture_of(checkpoint.config)
        self.device = torch.device(options.device)
        with opened_by_transformers(folder):
            model, found = AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, options.dtype), use_safetensors=True, local_files_only=True, trust_remote_code=False,
                attn_implementation=self._architecture.attention, output_loading_info=True,
            )
            absent = sorted(found["missing_keys"])
            if absent:
                raise InputError(f"{folder} has nothing to load into {absent[0]} and {len(absent) - 1} more, which transformers "
                                 "fills with random numbers; its config.json was changed, or weights are missing: make it again")
            self.model = model.eval().to(self.device)
        if options.dtype == "bfloat16" and not has_bfloat16(self.device):
            compute_in_float32(self.model)
        config = self.model.config
        self.vocabulary = config.vocab_size
        self.context = getattr(config, "max_position_embeddings", None) or config.n_positions
        quantizer = getattr(self.model, "hf_quantizer", None)
        method = quantizer and quantizer.quantization_config.quant_method
        self.is_thread_safe = self.device.type == "cpu" and method in (None, METHOD)  # others keep state from call to call
        self._cache = None
        self._noted, self._watches_head = local(), False  # hidden states by thread
        self._decoder = None
        if self.device.type == "cuda":
            self._decoder = CompiledDecoder(self.model, min(self.context, options.max_tokens or self.context))

    def decode_step_by_step(self) -> None:
        """From now on, decode as on a CPU: every product started by Python, and a cache that grows. For a comparison."""
        self._decoder = None

    @property
    def is_compiled(self) -> bool:
        return self._decoder is not None and self._decoder.is_compiled

    @torch.inference_mode()
    @using("exact")
    @FastProducts()  # not of `prefill` and `decode`, which are timed: there a model runs as transformers runs it
    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(tokens.to(self.device), use_cache=False).logits.float()

    @torch.inference_mode()
    def logits_and_states(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits, and the head's input, float32 [batch, length, width]. The first call must end before others begin."""
        if not self._watches_head:
            self._watches_head = True
            self.model.get_output_embeddings().register_forward_pre_hook(self._note_states)
        self._noted.states = []
        logits = self.logits(tokens)
        return logits, self._noted.__dict__.pop("states")[0]

    def _note_states(self, _: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        """Keep the head's input where this thread asked for it."""
        if "states" in self._noted.__dict__:
            self._noted.states.append(inputs[0].float())

    def prefill(self, tokens: torch.Tensor) -> int:
        tokens = tokens.view(1, -1).to(self.device)
        if self._decoder:
            return int(self._decoder.prefill(tokens).argmax())
        self._cache = None
        return self._step(tokens)

    def decode(self, token: int) -> int:
        tokens = torch.tensor([[token]], device=self.device)
        return int(self._decoder.decode(tokens).argmax()) if self._decoder else self._step(tokens)

    @torch.inference_mode()
    def _step(self, tokens: torch.Tensor) -> int:
        output = self.model(tokens, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache = output.past_key_values
        return int(output.logits[0, -1].argmax())

    def tensors(self) -> list[StoredTensor]:
        architecture, config = self._architecture, self.model.config.to_dict()
        found: dict[int, StoredTensor] = {}
        for name, part, tensor in _weights(self.model):
            storage = tensor.untyped_storage()
            if storage.nbytes():
                roles, dtype = architecture.roles_of_tensor(name, config), str(tensor.dtype).removeprefix("torch.")
                stored = StoredTensor(name, roles, part, dtype, tensor.numel() * tensor.element_size())
                found.setdefault(storage.data_ptr(), stored)
        return list(found.values())

    def module_counts(self) -> dict[str, int]:
        kinds = Counter(type(module).__name__ for module in self.model.modules() if hasattr(module, "weight"))
        return dict(sorted(kinds.items()))


def import_libraries(folder: Path) -> None:
    """Import the model's class and, for an artifact of this project, the kernels."""
    with opened_by_transformers(folder):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if getattr(config, "quantization_config", {}).get("quant_method") == METHOD:
        import quant.kernels.attention
        import quant.kernels.cpu

        if torch.cuda.is_available():
            import quant.kernels.cuda  # noqa: F401


def _part(name: str, parameter: torch.Tensor) -> str:
    """Part of a stored tensor: by its name in this project's artifacts (quant.tensor.qtensor.layout), elsewhere by its dtype."""
    last = name.rpartition(".")[2]
    if last in ("codes", "zeros", "classes"):
        return last
    if last in ("scales", "row_scales") or last.startswith("scale_"):
        return "scales"
    return "floats" if parameter.is_floating_point() else "codes"


def _weights(model: torch.nn.Module) -> Iterator[tuple[str, str, torch.Tensor]]:
    """(name, part, tensor) of parameters, of saved buffers, and of the state that bitsandbytes keeps beside its parameters."""
    for name, parameter in model.named_parameters():
        yield name, _part(name, parameter), parameter.data
        state = getattr(parameter, "quant_state", None)
        while state is not None:  # double quantization nests a second state for the scales
            yield f"{name}.absmax", "scales", state.absmax
            yield f"{name}.code", "codebook", state.code
            if getattr(state, "offset", None) is not None:
                yield f"{name}.offset", "scales", state.offset
            name, state = f"{name}.nested", getattr(state, "state2", None)
    for name, module in model.named_modules():  # bitsandbytes int8: on the weight before a first call, then on its state
        for holder in (getattr(module, "weight", None), getattr(module, "state", None)):
            for attribute, part in (("CB", "codes"), ("SCB", "scales")):
                if isinstance(getattr(holder, attribute, None), torch.Tensor):
                    yield f"{name}.weight.{attribute}", part, getattr(holder, attribute)
    saved = set(model.state_dict())
    for name, buffer in model.named_buffers():
        if name in saved:
            yield name, "floats", buffer
