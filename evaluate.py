"""Likelihood of trained runs, or of a score network of one's own, on held-out data, with its error budget."""

import sys

from experiment import evaluate, evaluate_score
from experiment.cli import evaluation_options, evaluation_parser, run


def main() -> None:
    """Parses, evaluates each run or the network, prints its likelihood."""
    asked = evaluation_parser().parse_args()
    options = evaluation_options(asked)
    if asked.score is not None:
        print(evaluate_score(**options).text())
    for folder in asked.runs:
        print(evaluate(folder, **options).text())


if __name__ == "__main__":
    sys.exit(run(main))
