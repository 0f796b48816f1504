// Draws the figures of a replay from the JSON in this page.

const replay = JSON.parse(document.getElementById("data").textContent);
const COLORS = { never: "var(--soft)", trtllm: "var(--before)", search: "var(--measured)", live: "var(--after)", oracle: "var(--oracle)" };
const names = Object.keys(COLORS).filter(name => name in replay);
const first = replay.window, iterations = replay.iterations;
// Recordings that begin among the measured iterations.
const drifts = replay.recordings.map(r => ({ at: r.first_index - first, name: r.name })).filter(r => r.at >= 0 && r.at < iterations.length);
const layers = replay.layers.length;
const size = n => {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (n >= 1024 && unit < units.length - 1) { n /= 1024; unit++; }
  return fixed(n, unit && n < 100 ? 1 : 0) + " " + units[unit];
};
const planBytes = of => replay.bytes_per_slot == null ? null : of.moves_per_layer * layers * replay.bytes_per_slot;

function summary() {
  const { never, live, oracle } = replay, span = (name, text) => make("span", { class: name }, text);
  if (live.balancedness == null) return ["No iteration after the window has load, so there is nothing to balance."];
  return ["Live plans have a balance of ", span("a", live.balancedness.toFixed(3)), " on average, no plans ", span("b", never.balancedness.toFixed(3)),
    ". Knowing the next iterations would give ", span("m", oracle.balancedness.toFixed(3)), "."];
}

function about() {
  const code = text => make("code", {}, text);
  return [replay.recordings.flatMap((r, i) => [i ? ", then " : "", code(r.path)]),
    ` · ${layers} layers × ${replay.num_experts} experts in ${replay.num_slots} slots on ${replay.num_ranks} ranks`, make("br"),
    `A plan every ${replay.every} iterations from the last ${replay.window}; ` +
    (replay.max_moves == null ? "live plans may move any number of experts." : `live plans move at most ${replay.max_moves} experts a layer.`)].flat();
}

function tiles() {
  const { never, search, live } = replay;
  tile("Balance by live plans", live.balancedness == null ? "–" : live.balancedness.toFixed(4), "mean / max, 1 is even");
  tile("Without plans", never.balancedness == null ? "–" : never.balancedness.toFixed(4), `placed by ${replay.policy} from the first ${replay.window} iterations`);
  tile("Moves a layer and plan", fixed(live.moves_per_layer, 1), `at most ${live.max_moves_per_layer}; ${fixed(search.moves_per_layer, 1)} by search anew`);
  const bytes = planBytes(live);
  if (bytes != null) tile("Bytes a plan", size(bytes), `${size(planBytes(search))} by search anew, of all ranks together`);
  tile("Plans", `${live.num_plans}`, live.num_kept ? `${live.num_kept} kept the placement: ` + Object.entries(replay.kept).map(([why, n]) => `${why} ${n}`).join(", ") : "none kept the placement");
}

function balanceFigure() {
  const series = names.map(name => ({ name, color: COLORS[name], faint: name !== "live" && name !== "never", values: replay[name].iterations }));
  const known = series.flatMap(s => s.values).filter(v => v != null);
  const low = known.length ? Math.floor(20 * Math.min(...known)) / 20 : 0;
  const head = ["iteration", ...names];
  figure("balance", "Balance over time", "mean / max of the ranks’ tokens in each iteration, averaged over layers. Higher is better. Dashed lines: another recording begins.", [
    keys(...series.map(s => [s.color, `${s.name}, ${ratio(replay[s.name].balancedness)} on average`])),
    chart({ label: "Balance of the ranks by iteration.", names: iterations, series, kind: "lines", height: 330, axis: "iteration", noun: "iteration",
      low, marks: drifts, format: ratio, tick: v => v.toFixed(2) })],
  () => table(head, [...iterations.map((iteration, i) => [iteration, ...series.map(s => ratio(s.values[i]))]),
    ["mean", ...names.map(name => ratio(replay[name].balancedness))]], { last: true, caption: "Balance by iteration" }));
}

function movesFigure() {
  const values = iterations.map(() => null);
  replay.live.plans.forEach(plan => { values[plan.index - first] = plan.num_moves; });
  const text = value => make("td", { class: "text" }, value);
  figure("moves", "Moves of live plans", "Slots that receive an expert, of all layers. A plan that keeps the placement has none.", [
    chart({ label: "Moves of live plans by iteration.", names: iterations, series: [{ name: "moves", color: "var(--after)", values }], kind: "bars", height: 190,
      axis: "iteration", noun: "iteration", marks: drifts.map(({ at }) => ({ at, name: "" })), format: v => v == null ? "no plan" : count(v), tick: count })],
  () => table(["iteration", "moves", "most of a layer", "layers", "rounds", "promised", make("th", { scope: "col", class: "text" }, "decision")],
    replay.live.plans.map(plan => [plan.iteration, count(plan.num_moves), plan.max_layer_moves, plan.num_layers, plan.num_rounds, ratio(plan.promised), text(plan.message)]),
    { caption: "Live plans" }));
}

function strategyFigure() {
  const hasBytes = replay.bytes_per_slot != null, hasBest = replay.live.best_split_balancedness != null;
  const head = ["", "balance", ...(hasBest ? ["best split"] : []), "moves a layer and plan", "most", "plans", "kept", ...(hasBytes ? ["bytes a plan"] : [])];
  figure("strategies", "Side by side", "The mean over the measured iterations, and what the plans move.", [
    make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Side by side" }, table(head, names.map(name => {
      const of = replay[name];
      return [name, ratio(of.balancedness), ...(hasBest ? [ratio(of.best_split_balancedness)] : []), fixed(of.moves_per_layer, 1), of.max_moves_per_layer, of.num_plans, of.num_kept,
        ...(hasBytes ? [size(planBytes(of))] : [])];
    }), { wide: true }))]);
}

document.getElementById("summary").replaceChildren(...summary());
document.getElementById("about").replaceChildren(...about());
document.getElementById("made").textContent = `Made by eplb ${replay.eplb}. Arrow keys move over the values of a focused figure; “Numbers” lists all values.`;
document.title = `eplb replay: ${replay.recordings.map(r => r.name).join(", ")}`;
tiles();
balanceFigure();
movesFigure();
strategyFigure();
themes();
