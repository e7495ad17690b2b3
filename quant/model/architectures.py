"""Architectures: which module of a model plays which role.

Roles: q k v o (attention), up gate down (mlp), embedding, head, norm, other. A fused matrix has several; `fused_rows` gives the
rows of each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from quant.errors import InputError
from quant.outside import shown

ROLES = ("q", "k", "v", "o", "up", "gate", "down", "embedding", "head", "norm", "other")
GROUPS = {"attention": ("q", "k", "v", "o"), "mlp": ("up", "gate", "down")}

Range = tuple[int, int]


@dataclass(frozen=True)
class Architecture:
    """The module names of an architecture.

    base: prefix of the model's body, which some checkpoints omit. blocks: the list of decoder blocks.
    inside, outside: module name (within a block; in the model) -> role, or roles where fused.
    tied: whether the head shares the embedding's weight if the config does not say; transformers' default.
    classes: transformers' classes of it, the causal language model first. attention: the one that transformers takes by default.
    transposed: modules whose weight is stored [in, out] (GPT-2's Conv1D). ignored: tensors that are not weights, such as masks.
    renamed: old module names in checkpoints -> current ones. interleaved: the rows of a fused q k v alternate head by head.
    """

    base: str
    blocks: str
    inside: Mapping[str, str | tuple[str, ...]]
    outside: Mapping[str, str]
    classes: tuple[str, ...] = ()
    attention: str = "sdpa"
    tied: bool = False
    transposed: frozenset[str] = field(default_factory=frozenset)
    ignored: str = r"(?!)"
    renamed: Mapping[str, str] = field(default_factory=dict)
    interleaved: bool = False

    def is_tied(self, config: Mapping) -> bool:
        """Whether embedding and head share a weight."""
        return bool(config.get("tie_word_embeddings", self.tied))

    @property
    def main_embedding(self) -> str:
        return next(name for name, role in self.outside.items() if role == "embedding")

    @property
    def head(self) -> str:
        return next(name for name, role in self.outside.items() if role == "head")

    def full_name(self, tensor: str) -> str:
        """The tensor's name in the model; a checkpoint of the body alone lacks the prefix."""
        for old, new in self.renamed.items():
            if tensor.startswith(old + "."):
                return new + tensor.removeprefix(old)
        heads = tuple(name for name in self.outside if not name.startswith(self.base))
        return tensor if tensor.startswith((self.base, *heads)) else self.base + tensor

    def block_of(self, module: str) -> int | None:
        """The number of the module's decoder block; None outside."""
        match = re.match(re.escape(self.blocks) + r"\.(\d+)\.", module)
        return int(match[1]) if match else None

    def roles_of(self, module: str) -> tuple[str, ...]:
        """The module's role, ("q",), or roles if it is fused; ("other",) for a module that this table does not name."""
        block = self.block_of(module)
        if block is None:
            role = self.outside.get(module, "other")
        else:
            role = self.inside.get(module.removeprefix(f"{self.blocks}.{block}."), "other")
        return (role,) if isinstance(role, str) else role

    def roles_of_tensor(self, name: str, config: Mapping) -> tuple[str, ...]:
        """Roles of a tensor in memory, whose name may have more parts than its module's; the embedding's include a tied head.

        `h.0.attn.c_attn.k_v.weight.codes` is k and v, `h.0.attn.c_attn.bias` is q, k and v.
        """
        parts = name.split(".")
        for end in range(len(parts) - 1, 0, -1):
            module = ".".join(parts[:end])
            roles = self.roles_of(module)
            if roles != ("other",):
                if module == self.main_embedding and self.is_tied(config):
                    return ("embedding", "head")
                part = tuple(parts[end].split("_"))
                return part if set(part) <= set(roles) else roles
        return ("other",)

    def is_transposed(self, module: str) -> bool:
        """Whether the module stores its weight as [in, out]."""
        return module.removeprefix(f"{self.blocks}.{self.block_of(module)}.") in self.transposed


_QKVO = {f"self_attn.{role}_proj": role for role in "qkvo"}
_LLAMA_NORMS = dict.fromkeys(
    (
        "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
        "self_attn.q_norm", "self_attn.k_norm",
    ),
    "norm",
)  # fmt: skip
_LLAMA_OUTSIDE = {"model.embed_tokens": "embedding", "model.norm": "norm", "lm_head": "head"}
_LLAMA = Architecture(
    base="model.",
    blocks="model.layers",
    classes=("LlamaForCausalLM", "LlamaModel"),
    inside={**_QKVO, "mlp.gate_proj": "gate", "mlp.up_proj": "up", "mlp.down_proj": "down", **_LLAMA_NORMS},
    outside=_LLAMA_OUTSIDE,
    ignored=r".*rotary_emb\.inv_freq",
)
_GPT2_OUTSIDE = {
    "transformer.wte": "embedding", "transformer.wpe": "embedding", "transformer.ln_f": "norm", "lm_head": "head",
}
_GPT2_LIKE = {"mlp.c_fc": "up", "mlp.c_proj": "down", "ln_1": "norm", "ln_2": "norm"}

ARCHITECTURES = {
    "gpt2": Architecture(
        base="transformer.",
        blocks="transformer.h",
        inside={"attn.c_attn": ("q", "k", "v"), "attn.c_proj": "o", **_GPT2_LIKE},
        outside=_GPT2_OUTSIDE,
        classes=("GPT2LMHeadModel", "GPT2Model", "GPT2DoubleHeadsModel"),
        tied=True,
        transposed=frozenset({"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}),
        ignored=r".*\.attn\.(masked_)?bias",
    ),
    "gpt_neo": Architecture(
        base="transformer.",
        blocks="transformer.h",
        inside={**{f"attn.attention.{role}_proj": role for role in "qkv"}, "attn.attention.out_proj": "o", **_GPT2_LIKE},
        outside=_GPT2_OUTSIDE,
        classes=("GPTNeoForCausalLM", "GPTNeoModel"),
        attention="eager",
        tied=True,
        ignored=r".*\.attn\.attention\.(masked_)?bias",
    ),
    "gpt_neox": Architecture(
        base="gpt_neox.",
        blocks="gpt_neox.layers",
        inside={
            "attention.query_key_value": ("q", "k", "v"), "attention.dense": "o", "mlp.dense_h_to_4h": "up",
            "mlp.dense_4h_to_h": "down", "input_layernorm": "norm", "post_attention_layernorm": "norm",
        },
        outside={"gpt_neox.embed_in": "embedding", "gpt_neox.final_layer_norm": "norm", "lm_head": "head"},
        classes=("GPTNeoXForCausalLM", "GPTNeoXModel"),
        renamed={"embed_out": "lm_head"},
        interleaved=True,
        ignored=r".*\.attention\.(masked_bias|bias|rotary_emb\.inv_freq)",
    ),
    "opt": Architecture(
        base="model.",
        blocks="model.decoder.layers",
        inside={
            **{f"self_attn.{role}_proj": role for role in "qkv"}, "self_attn.out_proj": "o", "fc1": "up", "fc2": "down",
            "self_attn_layer_norm": "norm", "final_layer_norm": "norm",
        },
        outside={
            "model.decoder.embed_tokens": "embedding", "model.decoder.embed_positions": "embedding",
            "model.decoder.final_layer_norm": "norm", "lm_head": "head",
        },
        classes=("OPTForCausalLM", "OPTModel"),
        tied=True,
    ),
    "phi3": Architecture(
        base="model.",
        blocks="model.layers",
        inside={
            "self_attn.qkv_proj": ("q", "k", "v"), "self_attn.o_proj": "o", "mlp.gate_up_proj": ("gate", "up"),
            "mlp.down_proj": "down", **_LLAMA_NORMS,
        },
        outside=_LLAMA_OUTSIDE,
        classes=("Phi3ForCausalLM", "Phi3Model"),
        ignored=_LLAMA.ignored,
    ),
    "llama": _LLAMA,
    **{name: replace(_LLAMA, classes=classes) for name, classes in {
        "mistral": ("MistralForCausalLM", "MistralModel"), "qwen2": ("Qwen2ForCausalLM", "Qwen2Model"),
        "qwen3": ("Qwen3ForCausalLM", "Qwen3Model")}.items()},
    "gemma": replace(_LLAMA, classes=("GemmaForCausalLM", "GemmaModel"), tied=True),
    "gemma2": replace(_LLAMA, classes=("Gemma2ForCausalLM", "Gemma2Model"), attention="eager", tied=True),
    "gemma3_text": replace(_LLAMA, classes=("Gemma3ForCausalLM", "Gemma3TextModel", "Gemma3Model"), tied=True),
}  # fmt: skip


def architecture_of(config: Mapping) -> Architecture:
    """The architecture that a config's model_type names. Raises InputError, which lists the known ones, for any other."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise InputError(f"architecture {shown(model_type)} has no table of roles; known: {known}")
    return ARCHITECTURES[model_type]


def fused_rows(config: Mapping, roles: tuple[str, ...], rows: int) -> dict[str, list[Range]]:
    """The rows, as ranges [start, stop), of each role of a matrix with `rows` rows; all of them if there is one role."""
    if len(roles) == 1:
        return {roles[0]: [(0, rows)]}
    heads = config.get("num_attention_heads") or config.get("n_head") or 1
    parts = 3 * heads if architecture_of(config).interleaved else heads + 2 * (config.get("num_key_value_heads") or heads)
    parts = parts if "q" in roles else len(roles)
    if rows > 1 and rows % parts:
        raise InputError(f"a fused matrix of {', '.join(roles)} has {rows} rows, which {parts} parts do not divide; fetch the "
                         "model again")
    if architecture_of(config).interleaved:
        size = rows // (3 * heads)
        return {role: [((3 * head + i) * size, (3 * head + i + 1) * size) for head in range(heads)]
                for i, role in enumerate(roles)}
    if "q" in roles:
        key_heads = config.get("num_key_value_heads") or heads
        size = rows // (heads + 2 * key_heads)
        sizes = [heads * size, key_heads * size, key_heads * size]
    else:
        sizes = [rows // len(roles)] * len(roles)
    stops = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return {role: [(stop - size, stop)] for role, size, stop in zip(roles, sizes, stops, strict=True)}
