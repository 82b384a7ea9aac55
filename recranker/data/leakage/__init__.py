"""The leakage gate: tables go in, and one clear error comes out when a held-out event got where it must not be.

Every check compares ids of whole columns. Each stands for one trap that has sunk a published or an earlier version of
this method; ``canaries`` plants each trap, and tests see it caught.
"""

from recranker.data.leakage.checks import check_candidates, check_interactions, check_prompts

__all__ = ["check_candidates", "check_interactions", "check_prompts"]
