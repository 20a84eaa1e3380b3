"""Rule `mean`: the trial whose point the model expects most of. What its neighbours, and other trials at the same
point, measured counts, too: so it is not the luckiest."""

from bayesd.winner.case import Case, Pick


def pick(case: Case) -> Pick:
    best, entry = case.best, case.expected
    if entry is None:
        return Pick(best, f"the {case.low} observed value of {case.extent}: they are too few, "
                          "or too odd, for a model")
    if case.terms.is_exact:
        return Pick(best, f"the {case.low} observed value of {case.extent}, and no noise "
                          "(noise = \"none\")")
    belief = case.belief(entry.trial)
    assert belief is not None       # the model knows whom it expects most of
    reason = f"the {case.low} expected value by the model: {belief.mean:.6g} ± {belief.sd:.2g}"
    if entry.trial != best.trial:
        reason += (f"; trial {best.trial} has the {case.low} observed value {best.value:.6g}, "
                   "but its neighbours do not bear it out")
    return Pick(entry, reason)
