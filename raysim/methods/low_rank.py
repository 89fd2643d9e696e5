"""Rules for adapters whose ranks clients hold the first of: HetLoRA's and FlexLoRA's aggregation."""

import torch

from raysim.client.hooks import LocalHooks, Report
from raysim.client.view import ClientView
from raysim.core.tensors import Params
from raysim.methods.method import CohortReport
from raysim.methods.options import MethodOptions
from raysim.models.adapters import factors_in

NORM, PRODUCT = "norm/", "product/"


def product_of(down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return B A, `(outputs, inputs)`; of convolutions `(outputs, inputs x height x width)`."""
    return up.flatten(1) @ down.flatten(1)


def _received(view: ClientView, update: Params, *names: str) -> Params:
    """Return factors as the server has them after a client's update, in float64."""
    return {name: view.start[name].double() + update[name].double() for name in names}


def report_by_norm(view: ClientView, options: MethodOptions) -> LocalHooks:
    """Report the factors of each adapter weighted with the norm of their product (HetLoRA, section 3.3)."""

    def read(update: Params) -> Report:
        sums = {}
        for down, up in factors_in(view.trainable).items():
            factors = _received(view, update, down, up)
            norm = product_of(factors[down], factors[up]).norm()
            sums[f"{NORM}{down}"] = ({**factors, NORM: torch.ones(1)}, float(norm))
        return Report(sums=sums)

    return LocalHooks(received=(read,))


def average_by_norm(params: Params, memory: Params, report: CohortReport) -> tuple[Params, Params]:
    """Average factors padded with zeros, weighted with the clients' norms |B_k A_k| (HetLoRA, eq 3).

    Ranks that nobody in the round held keep their values, and so does an adapter whose products are all zero.

    Source: Cho et al., arXiv 2401.06432, section 3.3.
    """
    updated = dict(params)
    for down, up in factors_in(params).items():
        sums = report.contribution.sums.get(f"{NORM}{down}")
        if sums is None or float(total := sums.value(NORM)) == 0:
            continue
        for name in (down, up):
            held = (report.coverage[name] > 0).expand(params[name].shape)
            updated[name] = torch.where(held, (sums.value(name) / total).to(params[name]), params[name])
    return updated, memory


def report_products(view: ClientView, options: MethodOptions) -> LocalHooks:
    """Report each adapter's product B_k A_k, weighted with the client's rows (FlexLoRA)."""

    def read(update: Params) -> Report:
        products = {
            f"{PRODUCT}{down}": product_of(*_received(view, update, down, up).values())
            for down, up in factors_in(view.trainable).items()
        }
        return Report(sums={PRODUCT: (products, float(len(view.targets)))})

    return LocalHooks(received=(read,))


def split_average_product(params: Params, memory: Params, report: CohortReport) -> tuple[Params, Params]:
    """Average the clients' products B_k A_k, and split the mean by its singular values into B = U S and A = V.

    The first ranks are those of the largest singular values, so that a client of few ranks receives the best
    approximation. An adapter whose products are all zero keeps its factors.

    Source: Bai et al., arXiv 2402.11505, section 3.
    """
    updated, rows = dict(params), float(report.view.examples.sum())
    for down, up in factors_in(params).items():
        mean = report.contribution.sums[PRODUCT].value(f"{PRODUCT}{down}") / rows
        if not mean.any():
            continue  # nobody has moved it
        left, values, right = torch.linalg.svd(mean, full_matrices=False)
        ranks = params[down].shape[0]
        filled = min(ranks, len(values))
        largest = right.abs().max(1, keepdim=True).indices
        signs = right.gather(1, largest).sign()  # a vector and its opposite fit alike
        factors = {name: torch.zeros(params[name].shape, dtype=torch.float64).flatten(1) for name in (down, up)}
        factors[down][:filled] = (right * signs)[:filled]
        factors[up][:, :filled] = (left * signs.T * values)[:, :filled]
        for name, factor in factors.items():
            updated[name] = factor.view(params[name].shape).to(params[name])
    return updated, memory
