"""Reads a model's config.json into checked values, and compares it with the weights.

A config comes from outside. It may name code to run (`auto_map`), another library's attention (`attn_implementation`) or classes
of another architecture (`architectures`); it may hold counts that no weight has, by which libraries would reserve memory.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from quant.errors import InputError, first_line
from quant.model.architectures import ARCHITECTURES
from quant.outside import MIB, file_within, is_count, plain_file, read_json, shown

if TYPE_CHECKING:
    from quant.model.inventory import Inventory, Weight

LARGEST = MIB
WIDTHS = ("hidden_size", "n_embd")
BLOCK_COUNTS = ("num_hidden_layers", "n_layer", "num_layers")  # as GPT-2 calls it; as GPT-Neo does
HEADS = ("num_attention_heads", "n_head", "num_heads")
INNER = ("intermediate_size", "n_inner", "ffn_dim")
POSITIONS = ("max_position_embeddings", "n_positions")
MOST = {  # the largest sensible value of each count; a larger one would reserve memory before anything is compared
    **dict.fromkeys(("vocab_size", *POSITIONS, "n_ctx", "sliding_window", "window_size"), 2**31),
    **dict.fromkeys((*WIDTHS, *INNER, "word_embed_proj_dim", "head_dim"), 2**24),
    **dict.fromkeys((*HEADS, "num_key_value_heads", *BLOCK_COUNTS), 2**16),
}
OWN_HEAD_SIZE = ("qwen3", "gemma", "gemma2", "gemma3_text")  # where the width divided by the heads is not the default
ATTENTION = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation")
ATTENTIONS = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")  # transformers' own
CODE = "auto_map"


def read_config(folder: Path) -> dict:
    """The folder's config.json. Raises InputError if it is missing, is not JSON, names no model_type or can't be trusted."""
    path = Path(folder) / "config.json"
    if not path.exists():
        raise InputError(f"{folder} has no config.json; expected a Hugging Face model folder")
    config = read_json(path, LARGEST)
    if not isinstance(config, dict) or "model_type" not in config:
        raise InputError(f"{path} names no model_type; expected the config of a causal language model")
    check_config(config, str(path))
    return config


def check_config(config: Mapping, where: str) -> None:
    """Raise InputError for a config whose counts are none, or which names code or classes that are not its architecture's."""
    kind = config["model_type"]
    if not isinstance(kind, str):
        raise InputError(f"{where}: model_type is {shown(kind)}; expected a name such as llama")
    for key in MOST.keys() & config.keys():
        value = config[key]
        if value is not None and not (is_count(value, 1) and value <= MOST[key]):
            raise InputError(f"{where}: {key} is {shown(value)}; expected a whole number from 1 to {MOST[key]:,}")
    if not isinstance(config.get("tie_word_embeddings", True), bool | None):
        raise InputError(f"{where}: tie_word_embeddings is {shown(config['tie_word_embeddings'])}; expected true or false")
    heads, key_heads = first_of(config, HEADS), config.get("num_key_value_heads")
    if heads and key_heads and heads % key_heads:
        raise InputError(f"{where}: num_key_value_heads is {key_heads}, which does not divide the {heads} heads")
    names = config.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise InputError(f"{where}: architectures is {shown(names)}; expected a list of names such as LlamaForCausalLM")
    if kind in ARCHITECTURES:
        own = ARCHITECTURES[kind].classes
        for name in names or ():
            if name not in own:
                raise InputError(f"{where}: architectures names {shown(name)}, and model_type is {kind}, whose classes are "
                                 f"{', '.join(own)}; refused")
        refuse_code(config, own, where)
    for key in ATTENTION:
        if config.get(key) not in ATTENTIONS:
            raise InputError(f"{where}: {key} is {shown(config[key])}, which libraries may fetch and run as code; expected none "
                             "or one of transformers' own, such as sdpa; refused")


def refuse_code(config: Mapping, classes: Collection[str], where: str) -> None:
    """Raise InputError for an `auto_map` that names code in place of a class of transformers; none of it ever runs.

    Cards of early days name the code from which transformers' own class was made, as Phi-3's do: the same class, which is used.
    """
    named = config.get(CODE)
    if named is None:
        return
    references = [one for value in (named.values() if isinstance(named, Mapping) else (named,))
                  for one in (value if isinstance(value, list) else [value]) if one is not None]
    stem = classes[0].removesuffix("ForCausalLM").removesuffix("LMHeadModel") if classes else "?"
    own = (*classes, f"{stem}Config", f"{stem}TextConfig", f"{stem}ForSequenceClassification", f"{stem}ForTokenClassification",
           "LlamaTokenizer", "GPT2Tokenizer", f"{stem}Tokenizer", f"{stem}TokenizerFast")
    for reference in references:
        text = reference if isinstance(reference, str) else shown(reference)
        if "--" in text or text.rpartition(".")[2] not in own:
            raise InputError(f"{where}: {CODE} names {shown(reference)}, code of the model's folder or of another one, which "
                             "this pipeline never runs; give a model that transformers opens without its own code; refused")


def without_code(config: Mapping) -> dict:
    """The config without the keys that name code or an attention, for the copy that the pipeline works with."""
    return {key: value for key, value in config.items() if key not in (CODE, *ATTENTION)}


def check_tokenizer(folder: Path) -> None:
    """Raise InputError for a tokenizer.json that can't be opened, and for a config of it that is no JSON object or names code."""
    path = Path(folder) / "tokenizer.json"
    if path.exists():
        open_tokenizer_file(path)
    for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "added_tokens.json"):
        path = Path(folder) / name
        if not path.exists() and not path.is_symlink():
            continue
        values = read_json(path, 16 * LARGEST)
        if not isinstance(values, dict):
            raise InputError(f"{path} holds {shown(values)}; expected an object of keys and values")
        if name == "tokenizer_config.json":
            refuse_code(values, (), str(path))
            token = values.get("bos_token")
            text = token.get("content") if isinstance(token, dict) else token
            if not isinstance(text, str | None):
                raise InputError(f"{path}: bos_token is {shown(token)}; expected the text of a token")


def open_tokenizer_file(path: Path):
    """A tokenizer.json as a tokenizers.Tokenizer. Raises InputError where the library can't read it."""
    from tokenizers import Tokenizer

    with translating_tokenizers(f"{path} can't be read"):
        return Tokenizer.from_file(str(plain_file(path)))


@contextmanager
def translating_tokenizers(what: str) -> Iterator[None]:
    """Turn errors of the tokenizers library, and panics of its Rust, which print themselves, into InputError of one line."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    except (InputError, MemoryError):
        raise
    except BaseException as error:  # the library has no narrower class than Exception, and a panic is not even that
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{what}: {first_line(error)}; fetch the model again") from error
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def first_of(config: Mapping, keys: tuple[str, ...]):
    """The value of the first of `keys` that the config has; None if it has none."""
    return next((config[key] for key in keys if config.get(key) is not None), None)


def check_shapes(inventory: Inventory) -> None:
    """Raise InputError for a weight whose shape is not the one that the config gives, which libraries would build by the config.

    What the config leaves to the defaults of transformers is not compared.
    """
    config = inventory.config
    width, inner, heads = (first_of(config, keys) for keys in (WIDTHS, INNER, HEADS))
    size = config.get("head_dim")
    if size is None and width and heads and config["model_type"] not in OWN_HEAD_SIZE:
        size = width // heads
    queries = heads * size if heads and size else None
    keys = (config.get("num_key_value_heads") or heads) * size if heads and size else None
    out = {"q": queries, "k": keys, "v": keys, "o": width, "up": inner, "gate": inner, "down": width}
    into = {**dict.fromkeys(("q", "k", "v", "up", "gate"), width), "o": queries, "down": inner}
    blocks = first_of(config, BLOCK_COUNTS)
    if blocks is not None and len(inventory.blocks) != blocks:
        raise InputError(f"config.json says {blocks} decoder blocks, the weights have {len(inventory.blocks)}; fetch the "
                         "model again")
    for weight in inventory.weights:
        if weight.is_bias:
            continue
        if weight.roles[0] in ("embedding", "head"):
            expected = _of_a_table(weight, config, width)
        elif weight.roles == ("norm",):
            expected = (size if weight.module.endswith(("q_norm", "k_norm")) else width,)
        elif set(weight.roles) <= out.keys():
            rows = [out[role] for role in weight.roles]
            expected = (None if None in rows else sum(rows), into[weight.roles[0]])
        else:
            continue
        found = weight.shape
        if len(found) != len(expected) or any(e not in (None, n) for e, n in zip(expected, found, strict=True)):
            said = ", ".join("any" if one is None else str(one) for one in expected)
            raise InputError(f"{weight.tensor} has shape {list(found)}, and config.json gives [{said}]; fetch the model again, "
                             "or mend its config.json")


def _of_a_table(weight: Weight, config: Mapping, width: int | None) -> tuple[int | None, int | None]:
    """The shape of an embedding or a head. OPT's positions begin at 2; OPT may project its embedding to another width."""
    kind, last = config["model_type"], weight.module.rpartition(".")[2]
    if last in ("wpe", "embed_positions"):
        places = first_of(config, POSITIONS)
        return places and places + 2 * (kind == "opt"), width
    return config.get("vocab_size"), (config.get("word_embed_proj_dim") or width) if kind == "opt" else width


def check_places(folder: Path, names: Collection[str], largest: int | None = None) -> None:
    """Raise InputError unless each of `names` is a plain file of the folder: no link out of it, pipe, device or folder."""
    for name in names:
        file_within(Path(folder) / name, folder, largest)
