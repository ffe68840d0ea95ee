"""toycolbert's scores through MaxSim."""

from li_plugins.api import Decline
from li_plugins.ops import MaskRule, maxsim, supports_maxsim

RULE = MaskRule.FILL(-9999.0)


def score(queries, documents, mask=None):
    """Score as toycolbert does: a masked token has the similarity -9999."""
    fit = supports_maxsim(queries, documents, document_mask=mask, mask_rule=RULE)
    if not fit:
        return Decline(fit.reason)
    return maxsim(queries, documents, document_mask=mask, mask_rule=RULE)
