"""How good the bound is, and whether the weights can be trusted."""

from ppvae.diagnostics.bounds.conditional import conditional_evidence
from ppvae.diagnostics.bounds.importance import (
    Evidence,
    Pareto,
    evidence,
    pareto_k,
    pareto_threshold,
)
from ppvae.diagnostics.bounds.imputation import imputation_error
from ppvae.diagnostics.bounds.ppca import PPCA, paper_units, ppca_bound
from ppvae.diagnostics.bounds.step_size import StepSearch, search_step_size

__all__ = [
    "PPCA",
    "Evidence",
    "Pareto",
    "StepSearch",
    "conditional_evidence",
    "evidence",
    "imputation_error",
    "paper_units",
    "pareto_k",
    "pareto_threshold",
    "ppca_bound",
    "search_step_size",
]
