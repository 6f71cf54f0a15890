// Every kernel of the operators, forward and backward, called as module.cpp calls it.
#include "../../src/spikegpt/ops/csrc/kernels.h"

#include <utility>

#include "vectors.h"

namespace spikegpt::baseline {
extern const Kernels kernels;
}

namespace {

using namespace spikegpt;
using baseline::kernels;

constexpr float kExact = 0.0f, kClose = 1e-5f, kRounded = 1.0f / 256;  // bfloat16 has 8 bits

Values in(const Case &given, const char *name) {
  if (!given.has(name)) return {};
  const Array &array = given.at(name);
  return {array.bytes.data(), array.type == 'h'};
}

const float *floats(const Case &given, const char *name) { return given.has(name) ? given.at(name).floats() : nullptr; }

// New memory for a result, full of NaN: what a kernel leaves out is found.
class Room {
 public:
  Room(int64_t count, bool half = false) : array_{half ? 'h' : 'f', {count}, {}} {
    array_.bytes.assign(static_cast<std::size_t>(count) * (half ? 2 : 4), 0xff);
  }
  Room(const Case &like, const char *name) : Room(like.at(name).count(), like.at(name).type == 'h') {}

  operator float *() { return reinterpret_cast<float *>(array_.bytes.data()); }
  Results results() { return {array_.bytes.data(), array_.type == 'h'}; }
  void compare(const Case &given, const char *name, float tolerance) const {
    given.compare(name, array_.values(), array_.type == 'h' ? kRounded : tolerance);
  }
  // [rows, columns] added up over the rows.
  void compare_sum(const Case &given, const char *name, float tolerance) const {
    const std::vector<float> rows = array_.values();
    std::vector<float> sums(static_cast<std::size_t>(given.at(name).count()), 0.0f);
    for (std::size_t i = 0; i < rows.size(); ++i) sums[i % sums.size()] += rows[i];
    given.compare(name, sums, tolerance);
  }

 private:
  Array array_;
};

Shape shape_of(const Case &given) {
  const std::vector<float> sizes = given.at("shape").values();
  return {static_cast<int64_t>(sizes[0]), static_cast<int64_t>(sizes[1]), static_cast<int64_t>(sizes[2])};
}

int64_t checkpoints(const Shape &shape) { return shape.time > 0 ? (shape.time - 1) / kChunk : 0; }

// Items in two runs: a kernel must not depend on where it begins.
template <class Op>
void run(void (*kernel)(const Op &, int64_t, int64_t), const Op &op, int64_t items) {
  kernel(op, items / 2, items);
  kernel(op, 0, items / 2);
}

template <class Op>
void run_tiles(void (*kernel)(const Op &, int64_t, int64_t), const Op &op, const Shape &shape) {
  run(kernel, op, shape.batch * ((shape.channels + kBlock - 1) / kBlock));
}

int64_t flat_items(int64_t elements) { return (elements + kFlat - 1) / kFlat; }

void test_wkv(const Case &given) {
  const Shape shape = shape_of(given);
  const auto [batch, time, channels] = shape;
  const Wkv wkv{shape,          floats(given, "decay"), floats(given, "first"), in(given, "k"),
                in(given, "v"), in(given, "gate"),      floats(given, "state")};
  Room y(given, "y"), state(batch * 3 * channels), saved(batch * checkpoints(shape) * 3 * channels);
  run_tiles(kernels.wkv_forward, {wkv, y.results(), state, saved}, shape);
  y.compare(given, "y", kClose);
  state.compare(given, "state_out", kClose);
  Room decay(batch * channels), first(batch * channels), grad_state(batch * 3 * channels);
  Room k(given, "grad_k"), v(given, "grad_v"), gate(given, given.has("gate") ? "grad_gate" : "grad_k");
  run_tiles(kernels.wkv_backward,
            {wkv, saved, in(given, "grad_y"), floats(given, "grad_state_out"), decay, first, k.results(), v.results(),
             gate.results(), grad_state},
            shape);
  decay.compare_sum(given, "grad_decay", kClose);
  first.compare_sum(given, "grad_first", kClose);
  k.compare(given, "grad_k", kClose);
  v.compare(given, "grad_v", kClose);
  if (given.has("gate")) gate.compare(given, "grad_gate", kClose);
  grad_state.compare(given, "grad_state", kClose);
}

void test_lif(const Case &given) {
  const Shape shape = shape_of(given);
  const auto [batch, time, channels] = shape;
  const LifSettings set{given.number("tau"), given.number("threshold"), given.number("alpha")};
  Room spikes(batch * time * channels), membrane(batch * channels), saved(batch * checkpoints(shape) * channels);
  run_tiles(kernels.lif_forward,
            {shape, set, in(given, "x"), floats(given, "membrane"), floats(given, "residual"), spikes, membrane, saved},
            shape);
  spikes.compare(given, "spikes", kExact);
  membrane.compare(given, "membrane_out", kExact);
  Room grad_x(given, "grad_x"), grad_membrane(batch * channels);
  run_tiles(kernels.lif_backward,
            {shape, set, in(given, "x"), floats(given, "membrane"), saved, floats(given, "grad_spikes"),
             floats(given, "grad_membrane_out"), grad_x.results(), grad_membrane},
            shape);
  grad_x.compare(given, "grad_x", kClose);
  grad_membrane.compare(given, "grad_membrane", kClose);
}

EventSettings event_settings(const Case &given) {
  EventSettings set{};
  set.levels = given.number("levels");
  set.smallest = given.number("smallest");
  set.window = given.number("window");
  set.is_signed = given.number("signed") != 0.0f;
  set.hard = given.number("hard") != 0.0f;
  set.threshold = floats(given, "threshold");
  set.unit = floats(given, "unit");
  return set;
}

void test_event(const Case &given) {
  const Shape shape = shape_of(given);
  const auto [batch, time, channels] = shape;
  const EventSettings set = event_settings(given);
  Room events(given, "events"), membrane(batch * channels), saved(batch * checkpoints(shape) * channels);
  run_tiles(
      kernels.event_forward,
      {shape, set, in(given, "x"), floats(given, "leak"), floats(given, "membrane"), events.results(), membrane, saved},
      shape);
  events.compare(given, "events", kExact);
  membrane.compare(given, "membrane_out", kExact);
  Room grad_x(given, "grad_x"), grad_leak(batch * channels), grad_membrane(batch * channels);
  run_tiles(kernels.event_backward,
            {shape, set, in(given, "x"), floats(given, "leak"), floats(given, "membrane"), saved,
             in(given, "grad_events"), floats(given, "grad_membrane_out"), grad_x.results(), grad_leak, grad_membrane},
            shape);
  grad_x.compare(given, "grad_x", kClose);
  grad_leak.compare_sum(given, "grad_leak", kClose);
  grad_membrane.compare(given, "grad_membrane", kClose);
}

void test_point_event(const Case &given) {
  const auto [batch, time, channels] = shape_of(given);
  Room events(given, "events"), grad_x(given, "grad_x");
  std::vector<uint8_t> passes(static_cast<std::size_t>(batch * time * channels), 2);
  const PointEvent op{channels, event_settings(given), in(given, "x"), events.results(), passes.data()};
  run(kernels.point_event_forward, op, batch * time);
  events.compare(given, "events", kExact);
  run(kernels.point_event_backward,
      PointEventBackward{channels, op.set.unit, passes.data(), in(given, "grad_events"), grad_x.results()}, batch * time);
  grad_x.compare(given, "grad_x", kClose);
  std::vector<int32_t> counts(static_cast<std::size_t>(2 * batch * time), -1);
  run(kernels.tally, Tally{channels, channels, op.set.levels, in(given, "events"), counts.data()}, batch * time);
  std::vector<float> sums(2, 0.0f);
  for (std::size_t i = 0; i < counts.size(); ++i) sums[i % 2] += static_cast<float>(counts[i]);
  given.compare("tally", sums, kExact);
}

void test_shift_mix(const Case &given) {
  const Shape shape = shape_of(given);
  const auto [batch, time, channels] = shape;
  const int64_t chunks = batch * ((time + kChunk - 1) / kChunk);
  const int count = static_cast<int>(given.at("mixes").shape[0]);
  ShiftMix mix{shape, count, floats(given, "x"), floats(given, "last"), {}};
  ShiftMixForward forward{mix, {}};
  ShiftMixBackward backward{mix, {}, nullptr, nullptr, nullptr};
  std::vector<Room> outputs;
  for (int i = 0; i < count; ++i) outputs.emplace_back(given, ("y" + std::to_string(i)).c_str());
  for (int i = 0; i < count; ++i) {
    forward.in.mixes[i] = backward.in.mixes[i] = floats(given, "mixes") + i * channels;
    forward.y[i] = outputs[static_cast<std::size_t>(i)].results();
    backward.grad_y[i] = in(given, ("grad_y" + std::to_string(i)).c_str());
  }
  run(kernels.shift_mix_forward, forward, batch * time);
  for (int i = 0; i < count; ++i)
    outputs[static_cast<std::size_t>(i)].compare(given, ("y" + std::to_string(i)).c_str(), kClose);
  Room grad_x(given, "grad_x"), grad_last(given, "grad_last"), grad_mixes(chunks * count * channels);
  backward.grad_x = grad_x;
  backward.grad_last = grad_last;
  backward.grad_mixes = grad_mixes;
  run(kernels.shift_mix_backward, backward, chunks);
  grad_x.compare(given, "grad_x", kClose);
  grad_last.compare(given, "grad_last", kClose);
  grad_mixes.compare_sum(given, "grad_mixes", kClose);
}

void test_pointwise(const Case &given) {
  const int64_t elements = given.at("x").count(), items = flat_items(elements);
  Room squared(given, "squared"), grad_squared(given, "grad_squared");
  run(kernels.relu_squared_forward, {elements, in(given, "x"), {}, squared.results()}, items);
  squared.compare(given, "squared", kClose);
  run(kernels.relu_squared_backward, {elements, in(given, "x"), in(given, "grad"), grad_squared.results()}, items);
  grad_squared.compare(given, "grad_squared", kClose);
  Room gated(given, "gated"), grad_gate(given, "grad_gate"), grad_x(given, "grad_x");
  run(kernels.gate_forward, {elements, in(given, "gate"), in(given, "x"), gated.results()}, items);
  gated.compare(given, "gated", kClose);
  run(kernels.gate_backward,
      {elements, in(given, "gate"), in(given, "x"), in(given, "grad"), grad_gate.results(), grad_x.results()}, items);
  grad_gate.compare(given, "grad_gate", kClose);
  grad_x.compare(given, "grad_x", kClose);
  Room dropped(given, "dropped");
  run(kernels.dropout, {elements, given.number("p"), given.at("seed").integers(), in(given, "x"), dropped.results()},
      items);
  dropped.compare(given, "dropped", kClose);
}

void test_cross_entropy(const Case &given) {
  const int64_t rows = given.at("targets").count(), classes = given.at("logits").shape.back();
  Room losses(rows), log_totals(rows), largest(rows), grad(given, "grad");
  std::vector<int64_t> where(static_cast<std::size_t>(rows), -1);
  const int64_t *targets = given.at("targets").integers();
  run(kernels.cross_entropy_forward, {classes, in(given, "logits"), targets, losses, log_totals, largest, where.data()},
      rows);
  losses.compare(given, "losses", kClose);
  run(kernels.cross_entropy_backward,
      {classes, given.number("penalty"), in(given, "logits"), targets, log_totals, largest, where.data(),
       floats(given, "grad_losses"), grad.results()},
      rows);
  grad.compare(given, "grad", kClose);
}

void test_divergence(const Case &given) {
  const int64_t rows = given.at("divergences").count(), classes = given.at("logits").shape.back();
  Room divergences(rows), log_totals(rows), teacher_log_totals(rows), grad(given, "grad");
  run(kernels.divergence_forward,
      {classes, in(given, "logits"), in(given, "teacher"), divergences, log_totals, teacher_log_totals}, rows);
  divergences.compare(given, "divergences", kClose);
  run(kernels.divergence_backward,
      {classes, in(given, "logits"), in(given, "teacher"), log_totals, teacher_log_totals,
       floats(given, "grad_divergences"), grad.results()},
      rows);
  grad.compare(given, "grad", kClose);
}

void test_matvec(const Case &given) {
  const int64_t rows = given.at("x").shape[0], inputs = given.at("x").shape[1], outputs = given.at("weight").shape[0];
  Room y(rows * outputs);
  run(kernels.matvec, {rows, inputs, outputs, floats(given, "x"), floats(given, "weight"), y}, outputs);
  y.compare(given, "y", kClose);
}

}  // namespace

void test_kernels(const Vectors &vectors) {
  each_case(vectors, "wkv", test_wkv);
  each_case(vectors, "lif", test_lif);
  each_case(vectors, "event", test_event);
  each_case(vectors, "point_event", test_point_event);
  each_case(vectors, "shift_mix", test_shift_mix);
  each_case(vectors, "pointwise", test_pointwise);
  each_case(vectors, "cross_entropy", test_cross_entropy);
  each_case(vectors, "divergence", test_divergence);
  each_case(vectors, "matvec", test_matvec);
}
