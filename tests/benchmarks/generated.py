"""Pairs by chance, by the thousand: is any of them accepted, and a number of it wrong?

    python tests/benchmarks/generated.py [--examples 5000] [--seed 0]

`tests/test_generated.py` judges 190 pairs; here are as many as asked for, half of them plain. For
each twist: how many pairs, how many with a wrong number or a wrong refusal, of which kinds, and
the first recipe of each kind, which `test_generated.faults` repeats.
"""

import random
import sys
from collections import Counter
from pathlib import Path

import torch
import tyro
from hypothesis import HealthCheck, Phase, given, seed, settings

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' own modules

from generated import TWISTS, Story, stories
from test_generated import faults


def judged(twist: str, examples: int, start: int) -> tuple[Counter, dict[str, tuple[Story, str]]]:
    """Return how often each kind of fault was met, and the first of each."""
    kinds, first = Counter(), {}

    @seed(start)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(stories(twist))
    def judge(story: Story) -> None:
        found = faults(story)
        kinds["pairs"] += 1
        kinds["faulty"] += bool(found)
        for fault in found:
            kind = fault.split(":")[0]
            kinds[kind] += 1
            first.setdefault(kind, (story, fault))

    judge()
    return kinds, first


def main(examples: int = 5000, seed: int = 0) -> None:
    """Judge so many pairs, and say what was found.

    Args:
        examples: How many, half of them without a twist.
        seed: Of the recipes.
    """
    torch.set_num_threads(1)
    random.seed(seed)
    others = [twist for twist in TWISTS if twist != "none"]
    shares = {"none": examples // 2} | dict.fromkeys(others, examples // (2 * len(others)))
    total = Counter()
    for twist, count in shares.items():
        kinds, first = judged(twist, count, seed)
        total.update(pairs=kinds["pairs"], faulty=kinds["faulty"])
        print(f"{twist:24} {kinds['faulty']:5d} of {kinds['pairs']:5d} faulty", flush=True)
        for kind, (story, fault) in first.items():
            print(f"    {kinds[kind]:5d} x {fault[:300]}\n          {story}", flush=True)
    print(
        f"{total['faulty']} of {total['pairs']} pairs are accepted and wrong, or wrongly refused"
    )


if __name__ == "__main__":
    tyro.cli(main)
