"""Likelihood of trained runs, or of a score network of one's own, with its error budget, or of other rows under it."""

import sys

from experiment.cli import evaluation_options, evaluation_parser, run


def main() -> None:
    """Parses, evaluates each run or the network, prints what is found."""
    asked = evaluation_parser().parse_args()
    options = evaluation_options(asked)
    from experiment import anomalies, classify, evaluate, evaluate_score  # torch takes seconds, which --help need not
    from experiment.distributed.ranks import joined

    judge = classify if asked.classify else evaluate if asked.data is None else anomalies
    with joined(device=asked.device) as ranks:
        if asked.score is not None:
            ranks.say(evaluate_score(**options, ranks=ranks).text())
        for folder in asked.runs:
            ranks.say(judge(folder, **options, ranks=ranks).text())


if __name__ == "__main__":
    sys.exit(run(main))
