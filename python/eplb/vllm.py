"""A policy for vLLM's EPLB, of the interface of vLLM 0.33. vLLM is not imported."""

from __future__ import annotations

from typing import Any

import numpy

from ._arrays import host, integers
from ._constants import EplbError, Status
from ._drop_in import rebalance_experts
from ._placement import Placement
from ._plan import plan

__all__ = ["EplbPolicy"]


class EplbPolicy:
    """A policy in place of vLLM's own, of the interface of its AbstractEplbPolicy.

    vLLM plans on every rank: equal loads give equal plans, on any number of threads.

    vLLM has one policy, and no option for another. Put this one in its place before the engine is made, as in a plugin:

        import vllm.distributed.eplb.policy
        vllm.distributed.eplb.policy.EPLB_POLICIES["default"] = eplb.vllm.EplbPolicy

    Attributes:
        policy: as for `eplb.rebalance_experts()`: "search", or "deepseek" for vLLM's own rule
    """

    policy = "search"

    @classmethod
    def rebalance_experts(
        cls,
        weight: Any,
        num_replicas: int,
        num_groups: int,
        num_nodes: int,
        num_ranks: int,
        old_global_expert_indices: Any | None = None,
    ) -> Any:
        """Plans a placement. Experts that stay on a rank keep their slots, so that no weights are copied for them.

        Args:
            weight: [layers][experts], the load of each expert, on any device
            num_replicas: slots of all ranks together, a multiple of num_ranks
            num_groups: groups of consecutive experts, of equal size
            num_nodes: nodes of consecutive ranks, of equal size
            num_ranks: ranks of the expert-parallel group
            old_global_expert_indices: [layers][num_replicas], the expert of each slot now, on any device; None, or
                of another shape: slots are not kept

        Returns:
            int64 [layers][num_replicas], the expert of each slot: a tensor if weight is one
        """
        weight = weight.cpu() if hasattr(weight, "cpu") else weight
        slots = rebalance_experts(weight, num_replicas, num_groups, num_nodes, num_ranks, cls.policy)[0]
        if old_global_expert_indices is None:
            return slots
        old = old_global_expert_indices
        old = integers(
            old.cpu() if hasattr(old, "cpu") else old, "old_global_expert_indices", numpy.int64, "[layers][slots]"
        )
        planned = host(slots, "slots")
        if old.shape != planned.shape:
            return slots
        num_experts = weight.shape[1]
        try:
            in_force = Placement.create(old, num_ranks, num_experts=num_experts)
        except EplbError as error:
            # As of ranks that have no expert yet: there is no slot to keep.
            if error.status != Status.INVALID_PLACEMENT:
                raise
            return slots
        moves = plan(in_force, Placement.create(planned, num_ranks, num_experts=num_experts))
        planned[...] = old
        for layer in moves.layer_ids.tolist():
            planned[layer] = moves.layer_experts(layer)
        return slots
