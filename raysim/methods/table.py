"""The table of named methods, one row each."""

from functools import partial

from raysim.budgets.rules import halving_level, whole_model
from raysim.client.assignments import LocalRules
from raysim.core.options import Option
from raysim.methods import (
    autoflip,
    dapperfl,
    feddst,
    fedmef,
    fedmp,
    fedrts,
    fedtiny,
    fiarse,
    fjord,
    low_rank,
    nefl,
    prunefl,
    topology,
)
from raysim.methods.fedprox import variable_work
from raysim.methods.mask_rules import shared_mask
from raysim.methods.method import Method
from raysim.methods.options import MethodOptions
from raysim.methods.scores import curvature_score, index_score, l1_score, random_score, rolling_score

EVERY_METHOD = frozenset({"objective", "proximal_mu"})
FILL = EVERY_METHOD | {"fill", "fill_gamma", "normalization"}
CUT = FILL | {"scaled_start"}
"""Of methods that cut as many channels of each group as a client's budget allows."""
SHARED_RANKING = CUT | {"score", "mask", "refresh_rounds", "silent_after"}
ESTIMATES = frozenset({
    "estimator", "score_decay", "curvature_scale", "curvature_max", "hutchinson_draws", "include_consumers", "unseen",
})  # fmt: skip
"""Read only where gradient and curvature are estimated."""
CURVATURE = SHARED_RANKING | ESTIMATES | {"warmup_rounds", "hysteresis", "silent_dormant"}
EQUALS_FEDAVG, NESTED = "equals fedavg at keep 1", "nested masks"
RETURNS = "pruned weights return"
"""Claimed where the global model is sparse."""
MAY_DIE = "channels may die"
"""Claimed where a channel may have a zero gradient on every row, until its pruned weights return."""
SparseMethod = partial(
    Method,
    score=index_score,
    budget=whole_model,
    options=MethodOptions(fill="holders"),
    reads=EVERY_METHOD | {"normalization"},
    mask=shared_mask,
    learns_widths=True,
    one_version=True,
    claims=frozenset({RETURNS, MAY_DIE}),
)
"""A row whose clients share one mask of single weights, which changes while they train."""
HETEROFL_RULES = LocalRules(scale_by_keep_ratio=True, own_classes_only=True, static_norm=True)

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "fedavg", "McMahan et al., arXiv 1602.05629",
            score=index_score, budget=whole_model, reads=EVERY_METHOD | {"normalization"},
            claims=frozenset({EQUALS_FEDAVG, NESTED}),
        ),
        Method(
            "fedprox", "Li et al., arXiv 1812.06127, eq 2 and section 5.2",
            score=index_score, budget=whole_model, options=MethodOptions(objective="proximal"),
            reads=EVERY_METHOD | {"normalization"}, work=variable_work,
            own={"straggler_share": Option(0.5, "share of a cohort that trains fewer epochs", high=1.0)},
            claims=frozenset({NESTED}),
        ),
        Method(
            "random", "CA-HFP, arXiv 2603.12591, warm-up masks",
            score=random_score, reads=CUT | {"mask"}, claims=frozenset({EQUALS_FEDAVG}),
        ),
        Method(
            "feddropout", "Caldas et al., arXiv 1812.07210; Wen et al., arXiv 2109.15258",
            score=random_score, options=MethodOptions(fill="holders"), reads=CUT | {"mask"},
            claims=frozenset({EQUALS_FEDAVG}),
        ),
        Method(
            "magnitude", "Li et al., arXiv 1608.08710",
            score=l1_score, reads=SHARED_RANKING, claims=frozenset({EQUALS_FEDAVG, NESTED}),
        ),
        Method(
            "heterofl", "Diao et al., arXiv 2010.01264",
            score=index_score, budget=halving_level, options=MethodOptions(fill="holders"),
            reads=CUT - {"normalization"}, rules=HETEROFL_RULES, claims=frozenset({NESTED}),
        ),
        Method(
            "fedrolex", "Alam et al., arXiv 2212.01548, section 3",
            score=rolling_score, budget=halving_level, options=MethodOptions(fill="holders"),
            reads=CUT - {"normalization"}, rules=HETEROFL_RULES, claims=frozenset({NESTED}),
        ),
        Method(
            "fjord", "Horvath et al., arXiv 2102.13451, eq 2 and section 4.2",
            score=index_score, budget=fjord.widest_fitting, options=MethodOptions(fill="holders"),
            reads=FILL - {"normalization"}, rules=LocalRules(static_norm=True), local=(fjord.ordered_dropout,),
            widths=fjord.widest_drawn, load=fjord.load_of_steps, most_load=fjord.load_of_widest_steps,
            claims=frozenset({NESTED}),
            own={"distill": Option(False, "whether the widest submodel teaches the drawn one")},
        ),
        Method(
            "fedmp", "Jiang et al., arXiv 2112.01070, eq 8 and algorithm 1",
            score=l1_score, budget=whole_model, reads=FILL | {"mask"},
            widths=fedmp.chosen_widths, after_round=fedmp.remember_rewards, learns_widths=True, chooses_widths=True,
            claims=frozenset({NESTED}),
            own={
                "discount": Option(0.95, "weight of a trial one round ago", high=1.0),
                "leaf_width": Option(0.1, "width under which an interval of ratios is not split", 0.001, 0.9),
            },
        ),
        Method(
            "dapperfl", "Jia et al., NeurIPS 2024, arXiv 2412.05823, eq 2 to 5 and 8",
            score=index_score, reads=FILL, mask=dapperfl.whole_model_down,
            width_mask=dapperfl.largest_norms,
            rules=LocalRules(choose_locally=dapperfl.fuse_and_prune), local=(dapperfl.feature_penalty,),
            load=dapperfl.load_of_phases, min_epochs=2,
        ),
        Method(
            "fisher", "Theis et al., arXiv 1801.05787; h w^2 of CA-HFP's specification",
            score=curvature_score, options=MethodOptions(score="curvature"), reads=CURVATURE - {"score"},
            claims=frozenset({EQUALS_FEDAVG, NESTED}),
        ),
        Method(
            "scaffold", "Karimireddy et al., arXiv 1910.06378, eq 3 to 5",
            score=l1_score, options=MethodOptions(objective="scaffold"), reads=SHARED_RANKING,
            claims=frozenset({NESTED}),
        ),
        Method(
            "prunefl", "Jiang et al., arXiv 1909.12326, theorem 1 and algorithms 1 and 2",
            score=index_score, budget=whole_model, options=MethodOptions(fill="zero"),
            reads=EVERY_METHOD | {"normalization"}, mask=shared_mask, local=(prunefl.report_squared_gradients,),
            prepare=prunefl.initial_pruning, after_round=prunefl.reconfigure, learns_widths=True, one_version=True,
            load=prunefl.add_reconfiguration_bytes, claims=frozenset({RETURNS}),
            own={
                "reconfigure_rounds": Option(50, "rounds between two choices of the mask", 1),
                "initial_rounds": Option(50, "most rounds of the initial pruning", 1),
            },
        ),
        SparseMethod(
            "feddst", "Bibikar et al., arXiv 2112.09824, section 3 and algorithm 1",
            local=(feddst.readjust,), prepare=topology.start_sparse, after_round=feddst.unite_and_prune,
            load=feddst.add_mask_bytes,
            own=topology.sparse_options(readjust_rounds=5, adjust_share=0.5, decay_rounds=200),
        ),
        SparseMethod(
            "fedtiny", "Huang et al., arXiv 2212.01977, adaptive BN selection and progressive pruning",
            local=(topology.report_largest_gradients,), prepare=fedtiny.choose_start,
            after_round=topology.grow_and_prune, load=topology.add_gradient_bytes,
            own={
                **topology.sparse_options(readjust_rounds=10, adjust_share=0.3, decay_rounds=100),
                "pool_size": Option(5, "sparse models that are compared before round 1", 1),
                "blocks": Option(5, "blocks of layers, one of which changes at a time", 1),
            },
        ),
        SparseMethod(
            "fedmef", "Huang et al., CVPR 2024, arXiv 2403.14737, budget-aware extrusion",
            local=(fedmef.extrude, topology.report_largest_gradients), prepare=topology.start_sparse,
            after_round=topology.grow_and_prune, load=topology.add_gradient_bytes,
            own={
                **topology.sparse_options(readjust_rounds=10, adjust_share=0.4, decay_rounds=300),
                "extrusion_penalty": Option(0.01, "weight of the squared norm of the weights about to be pruned"),
                "blocks": Option(1, "blocks of layers, one of which changes at a time", 1),
            },
        ),
        SparseMethod(
            "fedrts", "Huang et al., NeurIPS 2025, arXiv 2501.19122, Thompson sampling-based adjustment",
            local=(fedrts.vote,), prepare=topology.start_sparse, after_round=fedrts.sample_topology,
            load=fedrts.add_candidate_bytes,
            own={
                **topology.sparse_options(readjust_rounds=10, adjust_share=0.4, decay_rounds=300),
                "aggregated_share": Option(0.5, "share of the new model's votes beside those of clients", high=1.0),
                "evidence": Option(10.0, "votes that a round is worth"),
            },
        ),
        Method(
            "autoflip", "arXiv 2405.10271; steps 1 to 6 of the specification",
            score=index_score, budget=whole_model, reads=FILL, mask=autoflip.guided_masks,
            local=(autoflip.report_update,), prepare=autoflip.explore_losses, after_round=autoflip.learn_agreement,
            serve=autoflip.masked_model, figures=autoflip.update_variance, table=autoflip.guidance_table,
            learns_widths=True,
            own={
                "prune_share": Option(0.3, "quantile of all guidance values that is pruned", high=0.999),
                "mode": Option("hybrid", "what is pruned", choices=("hybrid", "unstructured", "structured")),
                "exploration_epochs": Option(10, "most epochs of the exploration", 1),
                "patience": Option(40, "epochs without a lower loss after which exploration ends", 1),
                "start": Option("initial", "weights of round 1", choices=("initial", "explored")),
                "participants": Option("seen", "whose exploration guides a round", choices=("seen", "cohort")),
                "agreement": Option("sign", "how clients agree on an entry", choices=tuple(autoflip.REPORTS)),
                "channel_share": Option(0.9, "share of pruned weights from which a channel is dropped", high=1.0),
                "channel_threshold": Option(0.0, "mean guidance at or under which a channel is dropped", high=1.0),
            },
        ),
        Method(
            "fiarse", "Wu et al., NeurIPS 2024, arXiv 2407.19389, eq 3 and algorithm 1",
            score=index_score, options=MethodOptions(fill="holders"), reads=FILL,
            mask=fiarse.largest_weights, cost_mask=fiarse.as_many_weights, local=(fiarse.controlled_by_threshold,),
            claims=frozenset({EQUALS_FEDAVG, NESTED}),
            own={
                "size": Option("weights", "keep_ratio is a share of weights or of channels", choices=fiarse.SIZES),
            },
        ),
        Method(
            "nefl", "Kang et al., arXiv 2308.07761, algorithm 1",
            score=index_score, options=MethodOptions(fill="holders"), reads=FILL - {"normalization"},
            mask=nefl.nested_submodels, cost_mask=nefl.nested_submodels, local=(nefl.with_own_parameters,),
            extra=nefl.own_parameters, after_round=nefl.average_own, serve_width=nefl.serve_width,
            drops_blocks=True, one_version=True, claims=frozenset({EQUALS_FEDAVG, NESTED}),
            own={"scaling": Option("both", "parts that submodels have fewer of", choices=tuple(nefl.SCALINGS))},
        ),
        Method(
            "hetlora", "Cho et al., arXiv 2401.06432, section 3.3",
            score=index_score, reads=EVERY_METHOD, local=(low_rank.report_by_norm,),
            after_round=low_rank.average_by_norm, needs_adapters=True, claims=frozenset({NESTED}),
        ),
        Method(
            "flexlora", "Bai et al., arXiv 2402.11505, section 3",
            score=index_score, reads=EVERY_METHOD, local=(low_rank.report_products,),
            after_round=low_rank.split_average_product, needs_adapters=True, claims=frozenset({NESTED}),
        ),
        Method(
            "ca-hfp", "arXiv 2603.12591, eq 2-4, 14 and 15",
            score=curvature_score, reads=CURVATURE, claims=frozenset({EQUALS_FEDAVG, NESTED}),
        ),
        Method(
            "ca-hfp+", "as `ca-hfp`; what studies/ca_hfp_small shows of ranking, silence, start and statistics",
            score=curvature_score, reads=CURVATURE,
            options=MethodOptions(
                score="channel", fill="damped", warmup_rounds=0, unseen="l1", hysteresis=5.0, silent_after=5,
                scaled_start=True, normalization="static",
            ),
            claims=frozenset({EQUALS_FEDAVG, NESTED}),
        ),
    )
}  # fmt: skip
