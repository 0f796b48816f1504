"""DeepSeek's EPLB after its published description, one layer and one choice at a time, in float32 with stable sorts.

Groups are packed onto nodes, heaviest first, each to the lightest node with room. Within a node, each spare slot goes to the
expert with the largest load per replica. The replicas are packed onto the node's ranks as the groups onto nodes. Where the
groups do not split evenly over the nodes, there is one group and one node.
"""

import numpy

f32 = numpy.float32


def pack(loads, num_packs):
    """Returns (pack, place in the pack) of each item."""
    room = len(loads) // num_packs
    if room == 1:
        return [(item, 0) for item in range(len(loads))]
    heaviest_first = sorted(range(len(loads)), key=lambda item: -loads[item])
    packs, totals, found = [[] for _ in range(num_packs)], [f32(0)] * num_packs, [None] * len(loads)
    for item in heaviest_first:
        lightest = min((p for p in range(num_packs) if len(packs[p]) < room), key=lambda p: totals[p])
        found[item] = (lightest, len(packs[lightest]))
        packs[lightest].append(item)
        totals[lightest] += loads[item]
    return found


def replicate(loads, num_replicas):
    """Returns (expert, number of the replica) of each replica, and the replicas of each expert."""
    counts = [1] * len(loads)
    replicas = [(expert, 0) for expert in range(len(loads))]
    while len(replicas) < num_replicas:
        hottest = max(range(len(loads)), key=lambda expert: (loads[expert] / f32(counts[expert]), -expert))
        replicas.append((hottest, counts[hottest]))
        counts[hottest] += 1
    return replicas, counts


def layer(weight, num_slots, num_groups, num_nodes, num_ranks):
    """Returns (expert, number of the replica) of each slot."""
    if num_groups % num_nodes:
        num_groups = num_nodes = 1
    size = len(weight) // num_groups
    groups = [f32(sum(weight[g * size : (g + 1) * size], f32(0))) for g in range(num_groups)]
    of_node = [[None] * (num_groups // num_nodes) for _ in range(num_nodes)]
    for group, (node, place) in enumerate(pack(groups, num_nodes)):
        of_node[node][place] = group
    slots = []
    for node in range(num_nodes):
        experts = [group * size + i for group in of_node[node] for i in range(size)]
        replicas, counts = replicate([weight[expert] for expert in experts], num_slots // num_nodes)
        shares = [weight[experts[local]] / f32(counts[local]) for local, _ in replicas]
        ranks = num_ranks // num_nodes
        room = len(replicas) // ranks
        placed = [None] * len(replicas)
        for replica, (rank, place) in enumerate(pack(shares, ranks)):
            local, number = replicas[replica]
            placed[rank * room + place] = (experts[local], number)
        slots += placed
    return slots


def rebalance_experts(weight, num_slots, num_groups, num_nodes, num_ranks):
    """Returns phy2log, log2phy and logcnt."""
    weight = numpy.asarray(weight, f32)
    planned = [layer(row, num_slots, num_groups, num_nodes, num_ranks) for row in weight]
    phy2log = numpy.array([[expert for expert, _ in slots] for slots in planned])
    logcnt = numpy.array([numpy.bincount(row, minlength=weight.shape[1]) for row in phy2log])
    log2phy = numpy.full((*weight.shape, logcnt.max()), -1)
    for row, slots in enumerate(planned):
        for slot, (expert, number) in enumerate(slots):
            log2phy[row, expert, number] = slot
    return phy2log, log2phy, logcnt
