"""The exception tree. Every message says what (with values), where, and what would fit.

SobreError
├── ConfigError       a recipe, a flag or a plan that cannot be (exit code 2)
├── DataError         a file or record that is not what it should be
├── CheckpointError   a model folder or a saved state that cannot be read
├── SandboxError      a machine that cannot hold model-written code
├── JudgeError        a judge that failed, or gave no verdict
├── RunError          a run that cannot start or go on (folder taken, disk full, non-finite loss)
└── EngineError       a request that the engine refuses
    └── PromptTooLong
"""


class SobreError(Exception):
    """Anything that a user, a file or the network can cause."""


class ConfigError(SobreError, ValueError):
    """A setting that cannot be; a ValueError, so that pydantic and tyro frame it."""


class DataError(SobreError):
    """Data that is not what it should be; the message names file and record."""


class CheckpointError(SobreError):
    """A model folder or a saved state that cannot be read."""


class SandboxError(SobreError):
    """This machine cannot hold model-written code; nothing was run."""


class JudgeError(SobreError):
    """The judge of a task failed, or gave no verdict; the message names task, problem and answer."""


class RunError(SobreError):
    """A run that cannot start or go on."""


class EngineError(SobreError):
    """A request that the engine refuses."""


class PromptTooLong(EngineError):
    """The prompt and its answer do not fit the engine's context."""
