"""Fine-tuning a language model with LoRA on four instructions at once."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlbench.tasks.base import BenchmarkTask, Budget, Metric, MultiSplit, Split, Splits
from mtlcore.errors import ConfigurationError

_SEED = 20_213
_LENGTH = 5
_COUNTS = {"train": 4000, "validation": 500, "test": 1500}
_DIGITS = 10
_SEPARATOR = _DIGITS
_INSTRUCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "copy": lambda digits: digits,
    "reverse": lambda digits: digits[:, ::-1],
    "sort": lambda digits: np.sort(digits, axis=1),
    "successor": lambda digits: (digits + 1) % _DIGITS,
}


@dataclasses.dataclass(frozen=True)
class Instructions(BenchmarkTask):
    """Copy, reverse, sort, or count up five digits, as an instruction token in front of them says.

    The model is a Llama of two layers made from a configuration: no weights are fetched. Its own weights are drawn once
    and stay as they are; trained are LoRA matrices on all linear layers (the trunk of this problem), and a read-out for
    each instruction. [choice] A frozen model that never learned a language is a poor one: this is here for the form of
    the problem (a PEFT trunk, sub-tasks with texts of their own), not for its scores.
    """

    rank: int = 8

    title = "Instructions: a small language model with LoRA on four instructions"
    about = "Made up: sequences of digits, and a tiny frozen Llama with LoRA adapters. Needs transformers and peft."
    sources = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """The instructions."""
        return tuple(_INSTRUCTIONS)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Share of right digits."""
        return tuple(Metric(name, "accuracy", higher_is_better=True, unit="%") for name in self.tasks)

    @property
    def budget(self) -> Budget:
        """Half a minute of one core."""
        return Budget(steps=300, batch_size=32, learning_rate=1e-2, evaluations=10)

    def load(self) -> Splits:
        """The three parts."""
        return _load()

    def trunk(self) -> nn.Module:
        """(N, tokens) -> (N, 5, 32) features at the places before each digit of the answer."""
        return _Trunk(self.rank)

    def head(self, task: str) -> nn.Module:
        """Scores of the ten digits."""
        return nn.Linear(32, _DIGITS)

    def loss(self, task: str, output: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of the answer's digits."""
        return F.cross_entropy(output.flatten(0, 1), target.flatten())

    def tally(self, task: str, output: Tensor, target: Tensor) -> Tensor:
        """(right, all)."""
        right = (output.argmax(dim=2) == target).sum()
        return torch.stack([right, torch.full_like(right, target.numel())]).double()

    def score(self, task: str, tally: Tensor) -> dict[str, float]:
        """Accuracy in percent."""
        return {"accuracy": 100.0 * float(tally[0] / tally[1])}


class _Trunk(nn.Module):
    """A frozen Llama with LoRA."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        try:
            import peft
            from transformers import LlamaConfig, LlamaModel
        except ImportError as error:
            raise ConfigurationError(
                "task instructions needs transformers and peft: pip install 'mtlcore[train,teleport]'."
            ) from error
        config = LlamaConfig(
            vocab_size=_DIGITS + 1 + len(_INSTRUCTIONS), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32, attn_implementation="eager",
            use_cache=False,
        )  # fmt: skip
        adapters = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
        with warnings.catch_warnings():  # peft asks for a property by the name that it had before
            warnings.simplefilter("ignore", FutureWarning)
            self.model = peft.get_peft_model(LlamaModel(config), adapters)

    def forward(self, tokens: Tensor) -> Tensor:
        features = self.model(input_ids=tokens.long()).last_hidden_state
        return features[:, -_LENGTH:]  # type: ignore[no-any-return]


@functools.cache
def _load() -> Splits:
    generator = np.random.default_rng(_SEED)
    total = sum(_COUNTS.values())
    numbers = generator.permutation(_DIGITS**_LENGTH)[: total * len(_INSTRUCTIONS)].reshape(len(_INSTRUCTIONS), total)
    parts: dict[str, dict[str, Split]] = {part: {} for part in _COUNTS}
    edges = np.cumsum([0, *_COUNTS.values()])
    for i, (name, does) in enumerate(_INSTRUCTIONS.items()):
        digits = numbers[i][:, None] // _DIGITS ** np.arange(_LENGTH) % _DIGITS
        answers = np.ascontiguousarray(does(digits))
        marks = [np.full((total, 1), token) for token in (_SEPARATOR + 1 + i, _SEPARATOR)]
        # The last digit of the answer is predicted, and followed by nothing.
        texts = np.concatenate([marks[0], digits, marks[1], answers[:, :-1]], axis=1)
        for part, a, b in zip(_COUNTS, edges[:-1], edges[1:]):
            x = torch.from_numpy(texts[a:b]).float()
            parts[part][name] = Split(x, {name: torch.from_numpy(answers[a:b])}, numbers[i][a:b])
    return Splits(**{part: MultiSplit.of(found) for part, found in parts.items()})
