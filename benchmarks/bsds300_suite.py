"""Models of both sides on natural image patches, beside the numbers in print of the models they come from."""

from functools import partial

from benchmarks.suites import measure_suite

COUNTERPARTS = {
    "gaussian": "full-covariance Gaussian",
    "real_nvp": "RealNVP(10)",
    "maf": "MAF(5)",
    "nsf": "RQ-NSF (C)",
    "gaussianization": "Gaussianization flow",
    "ffjord": "FFJORD",
}
measure = partial(measure_suite, "bsds300_patches", counterparts=COUNTERPARTS)
