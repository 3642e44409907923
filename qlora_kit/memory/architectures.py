"""Facts about model architectures: what a `config.json` says, and nothing that was learnt.

Standard library only, so that a budget needs neither torch nor a hub.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from qlora_kit.errors import KitError

# The facts of some well-known models by their name on the hub, as their config.json has them.
KNOWN = Path(__file__).with_name("architectures.json")
# Model types whose training step the closed formulas of `memory` describe. They share one layer:
# attention of four projections and a gated MLP of three, each behind a root-mean-square norm.
COVERED = ("llama", "mistral", "ministral3", "smollm3", "qwen2", "qwen3", "gemma3_text")


@dataclass(frozen=True)
class Architecture:
    """The sizes of a decoder-only language model, under the names of its `config.json`.

    `config` keeps every fact, so that transformers can build the model from it. `query_width` is
    heads times head_dim, `key_width` the same for keys and values, which may have fewer heads.
    """

    name: str
    config: dict

    @property
    def model_type(self):
        return self.config["model_type"]

    @property
    def covered(self):
        """True if the closed formulas hold: a known model type, and no mixture of experts."""
        return self.model_type in COVERED and not self.config.get("num_experts")

    @property
    def gemma(self):
        return self.model_type == "gemma3_text"

    @property
    def vocabulary(self):
        return self.config["vocab_size"]

    @property
    def hidden(self):
        return self.config["hidden_size"]

    @property
    def intermediate(self):
        return self.config["intermediate_size"]

    @property
    def layers(self):
        return self.config["num_hidden_layers"]

    @property
    def heads(self):
        return self.config["num_attention_heads"]

    @property
    def key_heads(self):
        return self.config.get("num_key_value_heads") or self.heads

    @property
    def head_dim(self):
        return self.config.get("head_dim") or self.hidden // self.heads

    @property
    def query_width(self):
        return self.heads * self.head_dim

    @property
    def key_width(self):
        return self.key_heads * self.head_dim

    @property
    def tied(self):
        """True if the output layer is the embedding itself and costs nothing."""
        return self.config["tie_word_embeddings"]

    def linears(self):
        """The shapes (out, in) of one layer's linear modules, by name."""
        hidden, width = self.hidden, self.intermediate
        return {
            "q_proj": (self.query_width, hidden),
            "k_proj": (self.key_width, hidden),
            "v_proj": (self.key_width, hidden),
            "o_proj": (hidden, self.query_width),
            "gate_proj": (width, hidden),
            "up_proj": (width, hidden),
            "down_proj": (hidden, width),
        }

    def linear_parameters(self):
        """Weights of all linear layers but the output layer: what QLoRA keeps in 4 bits."""
        return self.layers * sum(rows * columns for rows, columns in self.linears().values())

    def other_parameters(self):
        """Weights that stay in 16 or 32 bits: embedding, an untied output layer, norms, biases."""
        per_layer = (4 if self.gemma else 2) * self.hidden  # norms
        if self.gemma or self.model_type == "qwen3":
            per_layer += 2 * self.head_dim  # norms of the queries and keys
        if self.model_type == "qwen2" or self.config.get("attention_bias"):
            per_layer += self.query_width + 2 * self.key_width
        if self.config.get("attention_bias"):
            per_layer += self.hidden
        embedding = self.vocabulary * self.hidden
        return self.layers * per_layer + self.hidden + embedding * (1 if self.tied else 2)

    def adapter_parameters(self, rank, targets):
        """Parameters of LoRA adapters of that rank on the named modules: of every layer, or the
        embedding (embed_tokens) and the output layer (lm_head).
        """
        shapes = self.linears()
        per_layer = sum(sum(shapes[name]) for name in targets if name in shapes)
        outside = [name for name in targets if name not in shapes]  # once in a model
        return rank * (self.layers * per_layer + len(outside) * (self.vocabulary + self.hidden))


def known():
    """The architectures that come with the kit, by their name on the hub."""
    facts = json.loads(KNOWN.read_text(encoding="utf-8"))
    return {name: Architecture(name, config) for name, config in facts.items()}


def find(model):
    """The architecture of a model: a profile, a known name, a folder, a hub id, or a config object.

    Only the facts of a config are needed, never weights. A known name may be given without its
    owner, in any case. A folder must hold a `config.json`. Any other OWNER/NAME is asked of the
    hub. Raises KitError where nothing is found.
    """
    if hasattr(model, "to_dict"):  # a config of transformers
        return from_config(model.to_dict(), model.name_or_path or type(model).__name__)
    name = str(model.hub[0] if hasattr(model, "hub") else model)  # a profile knows its hub ids
    if Path(name).is_dir():
        return from_config(read(Path(name) / "config.json"), Path(name).name)
    architectures = known()
    for full, architecture in architectures.items():
        if name.lower() in (full.lower(), full.lower().partition("/")[2]):
            return architecture
    if "/" not in name:
        raise KitError(
            f"There is no model {name!r} here. Give a folder with a config.json, a hub id such as "
            f"owner/name, or one of {', '.join(full.partition('/')[2] for full in architectures)}."
        )
    return from_config(read(download(name)), name)


def download(repository):
    """The path of a hub model's config.json. Raises KitError where it cannot be fetched."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # it warns of every try
    try:
        return Path(hf_hub_download(repository, "config.json"))
    except GatedRepoError:
        raise KitError(
            f"{repository} is gated: accept its licence on the hub and set HF_TOKEN, "
            "or give a folder with its config.json."
        ) from None
    except HFValidationError:
        raise KitError(f"{repository!r} is not a hub id of the form owner/name.") from None
    except (HfHubHTTPError, OSError) as error:
        raise KitError(
            f"The config of {repository} could not be fetched ({type(error).__name__}). "
            "Check the name and the network, or give a folder with its config.json."
        ) from None


def read(path):
    """The dictionary in a config.json. Raises KitError if it is not one."""
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise KitError(f"There is no config.json in {Path(path).parent}.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise KitError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise KitError(f"{path} does not hold a model's config.")
    return config


# What the formulas and the X-ray cannot do without.
NEEDED = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)


def from_config(config, name):
    """An Architecture from a config dictionary; of a model that also sees or hears, its text part.

    transformers leaves out of a config.json what equals the model type's default, so these are
    filled in from the library. Raises KitError if a size is missing or makes no sense.
    """
    if isinstance(config.get("text_config"), dict):
        config = config["text_config"] | {"tie_word_embeddings": tied_outside(config, name)}
    if "model_type" not in config:
        raise KitError(f"The config of {name} names no model_type.")
    if any(key not in config for key in (*NEEDED, "tie_word_embeddings")):
        config = with_defaults(config, name)
    missing = [key for key in NEEDED if not config.get(key)]
    if missing:
        raise KitError(f"The config of {name} lacks {', '.join(missing)}.")
    for key in NEEDED[1:]:
        if not isinstance(config[key], int) or config[key] < 1:
            raise KitError(f"The config of {name} says {key} = {config[key]!r}.")
    heads, key_heads = config["num_attention_heads"], config.get("num_key_value_heads")
    if key_heads and heads % key_heads:
        raise KitError(
            f"The config of {name} has {heads} heads, which {key_heads} key heads cannot share."
        )
    if not config.get("head_dim") and config["hidden_size"] % heads:
        raise KitError(
            f"The config of {name} has {heads} heads, which do not divide its hidden size of "
            f"{config['hidden_size']}."
        )
    return Architecture(name, config)


def tied_outside(config, name):
    """True if a model that also sees or hears ties its output layer to the embedding.

    transformers (5.23, modeling_utils.get_expanded_tied_weights_keys) asks the outer config, whose
    default differs from type to type; some types (LlavaConfig, Qwen2VLConfig) also look into their
    text_config, where older versions wrote it. So the library is asked, where it knows the type.
    """
    if config.get("model_type") is None:
        raise KitError(f"The config of {name} names no model_type.")
    return bool(with_defaults(config, name)["tie_word_embeddings"])


def with_defaults(config, name):
    """The config completed with transformers' defaults for its model type."""
    from transformers import AutoConfig

    facts = {key: value for key, value in config.items() if key != "model_type"}
    try:
        return AutoConfig.for_model(config["model_type"], **facts).to_dict()
    except ValueError:
        raise KitError(
            f"transformers does not know the model type {config['model_type']!r} of {name}."
        ) from None
