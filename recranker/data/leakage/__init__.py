"""The leakage gate: tables go in, and one clear error comes out when a held-out event got where it must not be.

Every check compares ids of whole columns. Each stands for one trap that has sunk a published or an earlier version of
this method; a test plants each leak and sees it caught.
"""

from recranker.data.leakage.candidates import check_candidates
from recranker.data.leakage.interactions import check_interactions
from recranker.data.leakage.prompts import check_prompts

__all__ = ["check_candidates", "check_interactions", "check_prompts"]
