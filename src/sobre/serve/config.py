"""What `sobre serve` and `sobre chat` may be told. No torch here."""

from typing import Literal

import tyro

from sobre.config.base import config
from sobre.errors import ConfigError
from sobre.runtime.config import Device

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Names of this machine alone."""
Dtype = Literal["saved", "float32", "bfloat16", "float16", "fp8"]
"""What weights are held and computed with; `saved` is as they lie in the files, FP8 blocks multiplied out; with `fp8`
those stay FP8, and all else is as saved."""


@config
class Rounding:
    """What the engine rounds to compute with, where that buys memory and speed."""

    weights: Literal["model", "int8", "int4"] = "model"
    """The model's own, or its matrices rounded to 8 bits (a scale per channel) or 4 (per group of 32); `sobre eval`
    tells what that costs and gains."""
    cache: Literal["model", "int8"] = "model"
    """What the cache holds: the model's own numbers, or 8 bits each with a scale per token and head or latent."""

    @property
    def rounding(self) -> "Rounding":
        """These two alone, of a config that has more."""
        return Rounding(weights=self.weights, cache=self.cache)

    @property
    def told(self) -> str:
        """For the line at the start; empty where nothing is rounded."""
        chosen = (("weights", self.weights), ("cache", self.cache))
        return ", ".join(f"{name} in {kind}" for name, kind in chosen if kind != "model")


NO_ROUNDING = Rounding()


@config
class Decoding(Rounding):
    """How tokens are computed; none of it changes what a request is promised."""

    speculate: bool = False
    """Guess tokens ahead with the model's MTP module, or from the context when it has none, and check several at once:
    the same text; faster where guesses are often right (/metrics counts them)."""
    deterministic: bool = False
    """The same bits for a request whatever runs beside it, its prefix found or not, guessed ahead or not: products of
    fixed shapes. The start tells what that costs."""

    @property
    def decoding(self) -> "Decoding":
        """These alone, of a config that has more."""
        fields = ("weights", "cache", "speculate", "deterministic")
        return Decoding(**{field: getattr(self, field) for field in fields})

    def __post_init__(self) -> None:
        if self.deterministic and self.weights != "model":
            raise ConfigError(f"deterministic has no fixed-shape products for weights={self.weights}")


PLAIN = Decoding()
TEMPERATURE, TOP_P = 0.6, 0.95
"""DeepSeek's advice for R1."""
MIN_SECRET_CHARS = 32


def check_answering(temperature: float, top_p: float, price_usd_per_h: float | None) -> None:
    """Refuse what neither the server nor the chat can sample or bill by."""
    if not 0 <= temperature <= 2:
        raise ConfigError(f"temperature={temperature} must lie in 0..2")
    if not 0 < top_p <= 1:
        raise ConfigError(f"top_p={top_p} must lie above 0 and up to 1")
    if price_usd_per_h is not None and not 0 <= price_usd_per_h < float("inf"):
        raise ConfigError(f"price_usd_per_h={price_usd_per_h} must be a finite number, 0 or more")


@config
class ServeConfig(Decoding):
    """Answer OpenAI's and Anthropic's APIs and show a chat page, from model folders."""

    model: tyro.conf.Positional[tuple[str, ...]]
    """Folders of the models (config.json, *.safetensors, tokenizer.json) or their ids on the hub, such as
    Qwen/Qwen3-0.6B; the page compares any two of them."""
    dtype: Dtype = "saved"
    """Of weights and computing; saved keeps that of the files, FP8 blocks multiplied out; fp8 keeps those, too."""
    revision: str = ""
    """Branch, tag or commit of a model on the hub; left out, its main branch."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 listens on every network this machine is in."""
    port: int = 8000
    """Port to listen on; 0 picks a free one."""
    api_key: tuple[str, ...] = ()
    """Keys that may use the API; none means that whoever reaches the port may."""
    api_key_file: str = ""
    """File with one key per line: `KEY [admin] [name=N] [usd_per_day=X] ...`. No list of processes shows it."""
    requests_per_min: int = 0
    """Requests that each key may make in a minute; 0 is no limit. The key file may say otherwise for a key."""
    tokens_per_min: int = 0
    """Tokens, of prompts and answers, that each key may use in a minute; 0 is no limit."""
    usd_per_day: float = 0.0
    """Dollars that each key may spend in a day (UTC); 0 is no limit."""
    tls_cert: str = ""
    """Certificate chain (PEM): serve https."""
    tls_key: str = ""
    """Its private key (PEM); left out, the certificate's file holds it."""
    name: str = ""
    """The (first) model's name in the API; left out, the folder's name."""
    price_usd_per_h: float | None = None
    """Dollars per hour of this machine; left out, the ledger's price for it."""
    temperature: float = TEMPERATURE
    """Used when a request names none (DeepSeek's advice for R1); another engine has its own."""
    top_p: float = TOP_P
    """Used when a request names none (DeepSeek's advice for R1); another engine has its own."""
    device: Device = "auto"
    """Where the model runs; auto is the accelerator if there is one, else the CPU."""
    max_context: int = 0
    """Longest prompt and answer together, in tokens; 0 takes the model's."""
    engine: tuple[str, ...] = ("sobre",)
    """Who answers: sobre (ours); vllm or sglang, started as a process; or the http address of any server with OpenAI's
    chat API, which then knows MODEL. Several addresses are replicas: each conversation stays with one of them."""
    salt_file: str = ""
    """File with a secret of 32 characters or more that salts the cache of the engine behind for each key; the same for
    all routers of one service. Left out, a secret is drawn at the start."""
    prefix_dir: str = ""
    """Folder in which computed prefixes outlive the server, a file for each model, written when it ends by a signal and
    read when it starts; left out, a restart forgets them."""
    experts: bool = False
    """Keep which experts each token visits: requests may ask for it (`return_experts`), and the page shows it."""
    n_slots: int = 16
    """Answers written at the same time; more requests wait."""
    cache_tokens: int = 0
    """Tokens that the cache holds, all answers together; 0 takes n_slots times the context, or what half of the free
    memory holds. With fewer, answers wait or give way when the cache is full, and lose nothing."""
    max_waiting: int = 256
    """Requests that may wait; the next one is told 429."""
    max_body_bytes: int = 1 << 20
    """Largest request; a larger one is told 413 before it is read."""
    keep_alive_s: float = 15.0
    """A stream that has been silent for so long sends a comment, so that no proxy closes it."""
    read_timeout_s: float = 30.0
    """How long a client may take to send its request."""
    reasoning_field: Literal["both", "reasoning_content", "reasoning"] = "both"
    """What thoughts are called in chat completions: DeepSeek's name, vLLM's and OpenRouter's, or both at once."""
    strict_reasoning: bool = False
    """As DeepSeek's API does, refuse a history whose turns with tool calls come back without their thoughts."""
    write_timeout_s: float = 60.0
    """A client that takes nothing of its stream for so long is dropped."""
    drain_s: float = 20.0
    """After SIGTERM, how long running answers may go on."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names accepted besides the loopback ones while listening on loopback only (guards against DNS rebinding)."""

    @property
    def known_hosts(self) -> frozenset[str] | None:
        """Host names that requests may come for; None for any."""
        return frozenset((*LOOPBACK, *self.allowed_hosts)) if self.host in LOOPBACK else None

    def __post_init__(self) -> None:
        super().__post_init__()
        named = " ".join(self.engine)
        others = [one for one in self.engine if not one.startswith(("http://", "https://"))]
        if not self.engine or (others and named not in ("sobre", "vllm", "sglang")):
            raise ConfigError(f"engine={named} must be sobre, vllm, sglang, or http addresses of servers")
        if len(set(self.engine)) < len(self.engine):
            raise ConfigError(f"engine={named} names an address twice")
        if named != "sobre" and len(self.model) != 1:
            raise ConfigError(f"engine={named} serves one model, not {len(self.model)}")
        if named != "sobre" and (self.dtype != "saved" or self.revision):
            raise ConfigError(f"dtype and revision are for our own engine, not for engine={named}")
        if named != "sobre" and self.rounding != NO_ROUNDING:
            raise ConfigError(f"weights and cache are for our own engine, not for engine={named}")
        for field in ("prefix_dir", "speculate", "deterministic", "cache_tokens", "experts"):
            if named != "sobre" and getattr(self, field):
                raise ConfigError(f"{field} is for our own engine, not for engine={named}")
        if named != "sobre" and (self.temperature, self.top_p) != (TEMPERATURE, TOP_P):
            raise ConfigError(f"temperature and top_p are for our own engine; engine={named} samples as it was told")
        if named == "sobre" and self.salt_file:
            raise ConfigError("salt_file is for other engines; our own keeps the prefixes of keys apart by itself")
        if self.revision and len(self.model) != 1:
            raise ConfigError(f"revision={self.revision} is for one model, not {len(self.model)}")
        if not self.model:
            raise ConfigError("model: name the folder of a model, or its id on the hub")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port={self.port} must lie in 0..65535 (0 picks a free one)")
        if any(not key or not key.isascii() or not key.isprintable() for key in self.api_key):
            raise ConfigError("api_key must be printable ASCII and not empty")
        check_answering(self.temperature, self.top_p, self.price_usd_per_h)
        for field in ("n_slots", "max_body_bytes"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field}={getattr(self, field)} must be at least 1")
        if self.tls_key and not self.tls_cert:
            raise ConfigError("tls_key belongs to a tls_cert, and there is none")
        for field in (
            "max_waiting",
            "max_context",
            "cache_tokens",
            "requests_per_min",
            "tokens_per_min",
            "usd_per_day",
        ):
            if getattr(self, field) < 0:
                raise ConfigError(f"{field}={getattr(self, field)} must be at least 0")
        for field in ("keep_alive_s", "read_timeout_s", "write_timeout_s", "drain_s"):
            if not getattr(self, field) > 0:
                raise ConfigError(f"{field}={getattr(self, field)} must be above 0")


@config
class ChatConfig(Decoding):
    """Talk to a model in the terminal: thoughts dimmed, answer plain, tokens per second and cost."""

    model: tyro.conf.Positional[str]
    """Folder of the model (config.json, *.safetensors, tokenizer.json), or its id on the hub, such as
    Qwen/Qwen3-0.6B."""
    dtype: Dtype = "saved"
    """Of weights and computing; saved keeps that of the files, FP8 blocks multiplied out; fp8 keeps those, too."""
    revision: str = ""
    """Branch, tag or commit of a model on the hub; left out, its main branch."""
    prompt: str = ""
    """Answer this once and leave; left out, a conversation (or standard input, when it is piped)."""
    system: str = ""
    """The system's text, put before the conversation."""
    temperature: float = 0.6
    """0 always takes the likeliest token."""
    top_p: float = 0.95
    """Sample among the likeliest tokens that together hold this probability."""
    max_tokens: int = 0
    """Longest answer, thoughts included; 0 means all the room that the context leaves."""
    device: Device = "auto"
    """Where the model runs; auto is the accelerator if there is one, else the CPU."""
    max_context: int = 0
    """Longest conversation, in tokens; 0 takes the model's."""
    seed: int | None = None
    """The same seed and the same questions give the same answers; left out, each answer draws its own."""
    price_usd_per_h: float | None = None
    """Dollars per hour of this machine; left out, the ledger's price for it."""
    json: bool = False
    """With one question: print one JSON document on standard output and nothing else there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_answering(self.temperature, self.top_p, self.price_usd_per_h)
        if self.max_tokens < 0:
            raise ConfigError(f"max_tokens={self.max_tokens} must be at least 0 (0: all the room there is)")
        if self.max_context < 0:
            raise ConfigError(f"max_context={self.max_context} must be at least 0 (0: the model's own)")
