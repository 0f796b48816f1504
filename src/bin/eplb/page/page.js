// Draws the figures of a load report from the JSON in this page.

const report = JSON.parse(document.getElementById("data").textContent);
const layers = Object.keys(report.per_expert.tokens); // ascending, as keys that are whole numbers are
const placed = report.placement, slotsAsDumped = report.dump.counts === "slots", inOrder = "unbalanced" in report;
// "before" is the load without a balancer: null for more ranks than experts without a placement.
const beforeKey = inOrder ? "unbalanced" : "measured", before = report[beforeKey], after = report.projected;
const beforeAverage = report.average[beforeKey], afterAverage = report.average.projected;
// Without a placement there is one view, and no before and after.
const BEFORE = { name: placed ? "before" : inOrder ? "in order" : "measured", color: "var(--before)" };
const AFTER = { name: "after", color: "var(--after)" };
const MEASURED = { name: "measured", color: "var(--measured)" };
const views = before ? [{ ...BEFORE, of: before, average: beforeAverage, key: beforeKey }] : [];
if (after) views.push({ ...AFTER, of: after, average: afterAverage, key: "projected" });
if (placed && slotsAsDumped) views.push({ ...MEASURED, of: report.measured, average: report.average.measured, key: "measured" });
const tokens = layers.map(layer => report.per_expert.tokens[layer]);
const means = tokens.map(row => row.reduce((a, b) => a + b, 0) / row.length);
const rowHeight = layers.length > 40 ? 7 : layers.length > 20 ? 10 : layers.length > 8 ? 14 : 20;
const ids = slotsAsDumped && !placed ? "slot" : "expert";

function summary() {
  const b = beforeAverage && beforeAverage.imbalance_ratio, a = afterAverage && afterAverage.imbalance_ratio;
  const span = (name, text) => make("span", { class: name }, text);
  if (report.idle.layers.length === layers.length) return ["No layer has load, so there is no balance to report."];
  if (report.against) {
    const { average } = report.against, measured = report.against.dump.counts === "slots";
    return ["With this placement, the hottest rank has ", span("a", percent(average.predicted)), " more load than the mean on the load of the first dump, ",
      span("b", percent(measured ? average.measured : average.projected)), measured ? " as measured in the second." : " on that of the second."];
  }
  if (b == null) return [`The load of each of ${report.num_ranks} ranks depends on the placement.`];
  if (a == null) return ["The hottest rank has ", span("b", percent(b)), " more load than the mean."];
  return ["The hottest rank has ", span("b", percent(b)), " more load than the mean. With this placement, ", span("a", percent(a)), "."];
}

function about() {
  const d = report.dump, code = text => make("code", {}, text);
  const text = [code(d.path), ` · ${layers.length} layers × ${d.num_experts} ${slotsAsDumped ? "slots" : "experts"}, top ${d.experts_per_token || "unknown"} · ` +
    (d.iter_stop - d.iter_start > 1 ? `iterations ${d.iter_start} to ${d.iter_stop - 1}` : `iteration ${d.iter_start}`) + ` · ` +
    (d.num_ranks ? `${d.num_ranks} rank${d.num_ranks > 1 ? "s" : ""}` : "pipeline stages of several sizes") + (d.num_files === d.num_ranks ? "" : `, ${d.num_files} rank files`)];
  if (d.missing_ranks.length) text.push(`, without those of ${d.missing_ranks.join(", ")}`);
  if (d.iter_bucket * d.iter_stride > 1) {
    const every = d.iter_stride > 1 ? `, one in ${d.iter_stride}` : "";
    text.push(make("br"), `Rows of ${d.iter_bucket} iteration${d.iter_bucket > 1 ? "s" : ""}${every}: each is measured as one iteration.`);
  }
  text.push(...report.notes.flatMap(note => [make("br"), `Note: ${note}.`]));
  if (placed) text.push(make("br"), code(placed.path), ` · ${placed.num_slots} slots on ${placed.num_ranks} ranks · hash ${placed.hash}`);
  return text;
}

function tiles() {
  const change = (from, to) => [from, make("span", { class: "to", "aria-label": " to " }, "→"), to];
  const each = of => views.length > 1 ? change(of(views[0]), of(views[1])) : [of(views[0])];
  const worst = view => layers.map(layer => [view.of[layer].imbalance_ratio, layer]).filter(([r]) => r != null)
    .reduce((a, b) => b[0] > a[0] ? b : a, [null, ""]);
  if (views.length) {
    tile("Imbalance, average", each(view => percent(view.average.imbalance_ratio)), "0 is even");
    tile("Balancedness", each(view => view.average.balancedness == null ? "–" : view.average.balancedness.toFixed(3)), "mean / max, 1 is even");
    tile("Worst layer", each(view => percent(worst(view)[0])), worst(views[0])[1] && views.slice(0, 2).map(view => "layer " + worst(view)[1]).join(" before, ") + (views.length > 1 ? " after" : ""));
  }
  if (after) {
    const sum = of => layers.reduce((total, layer) => total + of[layer].max, 0);
    tile("Experts’ work", sum(after) > 0 ? times(sum(before) / sum(after)) : "–", "as fast, as every layer waits for its hottest rank");
    const spare = placed.num_slots - placed.num_experts;
    tile("Spare slots", `${spare}`, `${percent(spare / placed.num_experts)} more expert weights` + (placed.num_duplicates ? `; ${count(placed.num_duplicates)} duplicates in all layers` : ""));
  } else {
    const hot = report.per_expert.hottest[0];
    tile("Hottest " + ids, hot ? percent(hot.share) : "–", hot ? `of layer ${hot.layer}’s tokens, ${ids} ${hot.expert}` : "no load");
    if (before) tile("Tokens a rank", count(beforeAverage.mean), "mean of a layer and iteration");
  }
}

function layerFigure() {
  const head = ["layer", ...views.flatMap(view => [`${view.name}: mean`, "std", "max", "imbalance", "balancedness", "worst rank"])];
  const figures = b => [count(b.mean), count(b.std), count(b.max), ratio(b.imbalance_ratio), ratio(b.balancedness), b.worst_rank ?? ""];
  const rows = () => [...layers.map(layer => [layer, ...views.flatMap(view => figures(view.of[layer]))]),
    ["average", ...views.flatMap(view => figures(view.average))]];
  figure("layers", "Imbalance of each layer", `Load of the hottest of ${report.num_ranks} ranks above the mean. Lower is better.`, [
    keys(...views.map(view => [view.color, `${view.name}, ${percent(view.average.imbalance_ratio)} on average`])),
    chart({ label: "Imbalance of the ranks by layer.", names: layers, kind: "dots", axis: "layer", noun: "layer",
      series: views.map(view => ({ ...view, values: layers.map(layer => view.of[layer].imbalance_ratio) })) }),
  ], () => table(head, rows(), { last: true, caption: "Mean, standard deviation, imbalance and balancedness by layer" }));
}

function definitionsFigure() {
  const { num_layers } = report.balancedness, others = num_layers - layers.filter(layer => layer < num_layers).length;
  const text = value => make("td", { class: "text" }, value), of = key => views.map(view => ratio(report.balancedness[view.key][key]));
  const head = [make("th", { scope: "col", class: "text" }, "system"), make("th", { scope: "col", class: "text" }, "definition"), ...views.map(view => view.name)];
  const rows = [["eplb", "mean / max of the ranks, averaged over layers", "eplb"],
    ["SGLang", `(mean + 10⁻⁵) / (max + 10⁻⁵), averaged over all ${num_layers} layers of the model, of which ${others} without experts count as 1`, "sglang"],
    ["vLLM", "sum of the layers’ means / sum of their maxima", "vllm"],
    ["TensorRT-LLM", "imbalance ratio (max − mean) / mean, averaged over layers; 0 is even", "tensorrt_llm_imbalance_ratio"]];
  figure("definitions", "Balancedness by each system’s definition", "One load has several figures, since the systems weigh layers differently: SGLang counts layers without load as even, " +
    "vLLM gives more weight to layers with more tokens. Compare figures of one definition only.",
    [table(head, rows.map(([system, rule, key]) => [make("th", { scope: "row", class: "text" }, system), text(rule), ...of(key)]), { wide: true })]);
}

function rankFigure() {
  const maps = views.map(view => {
    const rows = layers.map(layer => report.rank_tokens[view.key][layer]);
    const relative = rows.map(row => { const mean = row.reduce((a, b) => a + b, 0) / row.length; return row.map(v => mean ? v / mean : 1); });
    const parts = heatmap({ label: `Tokens of each rank by layer, ${view.name}.`, names: layers, values: relative, rowHeight, axis: "rank",
      colors: () => loadColors(1), describe: (c, r) => `layer ${layers[r]}, rank ${c}, ${view.name}: ${count(rows[r][c])} tokens an iteration, ${times(relative[r][c])} the mean` });
    return make("div", {}, make("h3", { style: `color:${view.color}` }, view.name), parts);
  });
  const numbers = () => views.map(view => [make("h3", {}, view.name), table(["layer", ...report.rank_tokens[view.key][layers[0]].map((_, r) => "rank " + r)],
    layers.map(layer => [layer, ...report.rank_tokens[view.key][layer].map(count)]), { caption: `Tokens an iteration of each rank, ${view.name}` })]).flat();
  figure("ranks", "Load of each rank", "Mean over all iterations, relative to the mean of the layer: a pale row is an even layer. Differences between iterations cancel out here, but not in the imbalance.",
    [loadKeys(1), make("div", { class: maps.length > 1 ? "pair" : "" }, maps)], numbers);
}

function expertFigure() {
  const relative = tokens.map((row, r) => row.map(v => means[r] ? v / means[r] : 1));
  figure("experts", `Load of each ${ids}`, `How often the router chose each ${ids}, relative to the mean of the layer.`, [loadKeys(3),
    heatmap({ label: `Tokens of each ${ids} by layer.`, names: layers, values: relative, rowHeight, axis: ids, colors: () => loadColors(3),
      describe: (c, r) => `layer ${layers[r]}, ${ids} ${c}: ${count(tokens[r][c])} tokens, ${times(relative[r][c])} the mean` +
        (placed ? `, ${report.per_expert.replicas[layers[r]][c]} slots` : "") })],
  () => table(["layer", ...tokens[0].map((_, e) => String(e))], layers.map((layer, r) => [layer, ...tokens[r].map(count)]), { caption: `Tokens of each ${ids}` }));
}

function iterationFigure() {
  const names = report.iterations.map(i => i.iteration);
  const of = (view, part) => report.iterations.map(i => i[view.key][part]);
  const series = views.flatMap(view => [
    { name: view.name + ", worst layer", color: view.color, values: of(view, "worst"), faint: true },
    { name: view.name + ", average", color: view.color, values: of(view, "average") }]);
  const head = ["iteration", ...views.flatMap(view => [view.name + ": average", "worst", "in layer"])];
  figure("iterations", "Imbalance over iterations", "The average over layers, and the worst layer of each iteration as a thin line.", [
    keys(...views.map(view => [view.color, view.name])),
    chart({ label: "Imbalance of the ranks by iteration.", names, series, kind: "lines", axis: "iteration", noun: "iteration" })],
  () => table(head, report.iterations.map(i => [i.iteration, ...views.flatMap(view =>
    [ratio(i[view.key].average), ratio(i[view.key].worst), i[view.key].worst_layer ?? "–"])]), { caption: "Imbalance by iteration" }));
}

function replicaFigure() {
  const rows = layers.map(layer => report.per_expert.replicas[layer]);
  const totals = new Map();
  rows.flat().forEach(n => totals.set(n, (totals.get(n) || 0) + 1));
  const most = Math.max(...totals.keys()), NAMES = ["--r1", "--r2", "--r3", "--r4", "--r5", "--r6"];
  const name = n => NAMES[Math.min(n, 6) - 1];
  const group = n => n < 6 ? totals.get(n) || 0 : [...totals].filter(([k]) => k >= 6).reduce((sum, [, v]) => sum + v, 0);
  const legend = [1, 2, 3, 4, 5, 6].filter(n => group(n)).map(n => [`var(${name(n)})`, `${n}${n === 6 && most > 6 ? ` to ${most}` : ""} slot${n > 1 ? "s" : ""}: ${count(group(n))} experts`, "cell"]);
  figure("replicas", "Replicas of each expert", "Number of slots of each expert in the placement.", [keys(...legend),
    heatmap({ label: "Slots of each expert by layer.", names: layers, values: rows, rowHeight, axis: "expert",
      colors: () => { const known = NAMES.map(css); return n => known[Math.min(n, 6) - 1]; },
      describe: (c, r) => `layer ${layers[r]}, expert ${c}: ${rows[r][c]} slot${rows[r][c] > 1 ? "s" : ""} for ${times(means[r] ? tokens[r][c] / means[r] : 1)} the mean load` })],
  () => table(["layer", ...rows[0].map((_, e) => String(e))], layers.map((layer, r) => [layer, ...rows[r]]), { caption: "Slots of each expert" }));
}

function hottestFigure() {
  const hottest = report.per_expert.hottest, text = value => make("td", { class: "text" }, value);
  if (!hottest.length) return;
  const head = [ids, "layer", "tokens", "of the layer", ""].concat(placed ? ["slots", make("th", { scope: "col", class: "text" }, "ranks")] : []);
  const rows = hottest.map(hot => {
    const bar = make("td", { class: "meter", "aria-hidden": "true" }, make("i", { style: `width:${100 * hot.share / hottest[0].share}%` }));
    const row = [hot.expert, hot.layer, count(hot.tokens), percent(hot.share), bar];
    return placed ? [...row, report.per_expert.replicas[hot.layer][hot.expert], text(hot.ranks.join(", "))] : row;
  });
  figure("hottest", `Hottest ${ids}s`, `The ${hottest.length} with the largest share of their layer’s tokens; an even share is ${percent(1 / tokens[0].length)}.`,
    [make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Hottest ${ids}s`, style: "max-height:none" }, table(head, rows, { wide: true }))]);
}

function againstFigure() {
  const { dump, layers: of, average } = report.against, numbers = Object.keys(of), measured = average.measured != null;
  const observed = measured ? "measured" : "projected", signed = v => v == null ? "–" : (v < 0 ? "−" : "+") + Math.abs(v).toFixed(4);
  const series = [{ name: "predicted", color: "var(--after)", key: "predicted" }, { name: measured ? "measured" : "its load, split evenly", color: "var(--measured)", key: observed }];
  const row = (name, l) => [name, ratio(l.predicted), ratio(l[observed]), ...[l.drift, l.iterations, l.dispatch].map(signed), ratio(l.load_shift)];
  const head = ["layer", "predicted", observed, "drift", "iterations", "dispatch", "load shift"];
  const parts = [["Drift", average.drift, "other experts are hot, with the iterations of each dump added up"],
    ["Iterations", average.iterations, `single iterations differ from their sum: ${count(average.tokens[0])} tokens a layer in the first dump’s, ${count(average.tokens[1])} in the second’s`],
    ["Dispatch", average.dispatch, measured ? "routing did not split evenly over replicas" : "unknown: the second dump counts experts, not slots"]];
  figure("against", "Predicted and measured", `The second dump, ${dump.path}, iterations ${dump.iter_start} to ${dump.iter_stop - 1}, ${measured ? "recorded with this placement in use" : "its counts of experts split evenly over replicas, as if this placement were in use"}. ` +
    `${percent(average.load_shift)} of the tokens chose other experts.`, [
    keys(...series.map(s => [s.color, `${s.name}, ${percent(average[s.key])} on average`])),
    chart({ label: "Predicted and measured imbalance by layer.", names: numbers, kind: "dots", axis: "layer", noun: "layer",
      series: series.map(s => ({ ...s, values: numbers.map(layer => of[layer][s.key]) })) }),
    table([make("th", { scope: "col", class: "text" }, "Part of the difference"), "imbalance", ""], parts.map(([name, value, cause]) => [make("th", { scope: "row", class: "text" }, name), signed(value), make("td", { class: "text" }, cause)]), { wide: true })],
  () => table(head, [...numbers.map(layer => row(layer, of[layer])), row("average", average)], { last: true, caption: "Predicted and measured imbalance" }));
}

document.getElementById("summary").replaceChildren(...summary());
document.getElementById("about").replaceChildren(...about());
document.getElementById("made").textContent = `Made by eplb ${report.eplb}. Arrow keys move over the values of a focused figure; “Numbers” lists all values.`;
document.title = `eplb load report: ${report.dump.path}`;
tiles();
if (views.length) layerFigure();
if (report.against) againstFigure();
if (views.length) rankFigure();
expertFigure();
if (views.length && report.iterations.length > 1) iterationFigure();
if (placed) replicaFigure();
hottestFigure();
if (views.length) definitionsFigure();
themes();
