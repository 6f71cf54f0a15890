// The Python module: addresses in, kernels out. Shapes, types and contiguity are the caller's duty (ops/__init__.py and
// ops/native); only targets are checked here, whose values index the logits.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kernels.h"
#include "pool.h"

namespace nb = nanobind;

namespace spikegpt {

namespace baseline {
extern const Kernels kernels;
}
#if defined(SPIKEGPT_X86)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

namespace {

// What this machine can run, best first.
std::vector<const Kernels *> supported() {
  std::vector<const Kernels *> tables;
#if defined(SPIKEGPT_X86)
  __builtin_cpu_init();
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  if (wide) tables.push_back(&avx512::kernels);
  if (__builtin_cpu_supports("avx2")) tables.push_back(&avx2::kernels);
#endif
  tables.push_back(&baseline::kernels);
  return tables;
}

std::atomic<const Kernels *> active{supported().front()};

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels *table : supported()) names.emplace_back(table->name);
  return names;
}

std::string use(const std::string &name) {
  for (const Kernels *table : supported())
    if (name == table->name) return active.exchange(table)->name;
  throw std::invalid_argument("this machine has no instruction set " + name);
}

using Address = std::uintptr_t;
using Dims = std::int64_t;

const float *in(Address address) { return reinterpret_cast<const float *>(address); }
float *out(Address address) { return reinterpret_cast<float *>(address); }
const int64_t *integers(Address address) { return reinterpret_cast<const int64_t *>(address); }

// An address, and whether bfloat16 is there.
using Typed = std::pair<Address, bool>;

Values in(Typed tensor) { return {reinterpret_cast<const void *>(tensor.first), tensor.second}; }
Results out(Typed tensor) { return {reinterpret_cast<void *>(tensor.first), tensor.second}; }

// Below this many elements another thread costs more than it saves.
constexpr int64_t kGrain = 16384;

template <class Op>
void run(void (*kernel)(const Op &, int64_t, int64_t), const Op &op, int threads, int64_t items, int64_t elements) {
  const int64_t useful = 1 + elements / kGrain;
  Pool::shared().run(static_cast<int>(threads < useful ? threads : useful), items,
                     [&](int64_t begin, int64_t end) { kernel(op, begin, end); });
}

template <class Op>
void run(void (*kernel)(const Op &, int64_t, int64_t), const Op &op, int threads, const Shape &shape) {
  const int64_t blocks = (shape.channels + kBlock - 1) / kBlock;
  run(kernel, op, threads, shape.batch * blocks, shape.batch * shape.time * shape.channels);
}

template <class Op>
void run_flat(void (*kernel)(const Op &, int64_t, int64_t), const Op &op, int threads) {
  run(kernel, op, threads, (op.elements + kFlat - 1) / kFlat, op.elements);
}

void wkv_forward(int threads, Dims batch, Dims time, Dims channels, Address decay, Address first, Typed k, Typed v,
                 Typed gate, Address state, Typed y, Address state_out, Address checkpoints) {
  const Shape shape{batch, time, channels};
  run(active.load()->wkv_forward,
      WkvForward{
          {shape, in(decay), in(first), in(k), in(v), in(gate), in(state)}, out(y), out(state_out), out(checkpoints)},
      threads, shape);
}

void wkv_backward(int threads, Dims batch, Dims time, Dims channels, Address decay, Address first, Typed k, Typed v,
                  Typed gate, Address state, Address checkpoints, Typed grad_y, Address grad_state, Address grad_decay,
                  Address grad_first, Typed grad_k, Typed grad_v, Typed grad_gate, Address grad_state_in) {
  const Shape shape{batch, time, channels};
  run(active.load()->wkv_backward,
      WkvBackward{{shape, in(decay), in(first), in(k), in(v), in(gate), in(state)},
                  in(checkpoints),
                  in(grad_y),
                  in(grad_state),
                  out(grad_decay),
                  out(grad_first),
                  out(grad_k),
                  out(grad_v),
                  out(grad_gate),
                  out(grad_state_in)},
      threads, shape);
}

void lif_forward(int threads, Dims batch, Dims time, Dims channels, float tau, float threshold, float alpha, Typed x,
                 Address membrane, Address residual, Address spikes, Address membrane_out, Address checkpoints) {
  const Shape shape{batch, time, channels};
  run(active.load()->lif_forward,
      LifForward{shape,
                 {tau, threshold, alpha},
                 in(x),
                 in(membrane),
                 in(residual),
                 out(spikes),
                 out(membrane_out),
                 out(checkpoints)},
      threads, shape);
}

void lif_backward(int threads, Dims batch, Dims time, Dims channels, float tau, float threshold, float alpha, Typed x,
                  Address membrane, Address checkpoints, Address grad_spikes, Address grad_membrane, Typed grad_x,
                  Address grad_membrane_in) {
  const Shape shape{batch, time, channels};
  run(active.load()->lif_backward,
      LifBackward{shape,
                  {tau, threshold, alpha},
                  in(x),
                  in(membrane),
                  in(checkpoints),
                  in(grad_spikes),
                  in(grad_membrane),
                  out(grad_x),
                  out(grad_membrane_in)},
      threads, shape);
}

EventSettings settings(float levels, float smallest, float window, bool is_signed, bool hard, Address threshold,
                       Address unit) {
  return {levels, smallest, window, is_signed, hard, in(threshold), in(unit)};
}

void event_forward(int threads, Dims batch, Dims time, Dims channels, float levels, float smallest, float window,
                   bool is_signed, bool hard, Address threshold, Address unit, Typed x, Address leak, Address membrane,
                   Typed events, Address membrane_out, Address checkpoints) {
  const Shape shape{batch, time, channels};
  run(active.load()->event_forward,
      EventForward{shape, settings(levels, smallest, window, is_signed, hard, threshold, unit), in(x), in(leak),
                   in(membrane), out(events), out(membrane_out), out(checkpoints)},
      threads, shape);
}

void event_backward(int threads, Dims batch, Dims time, Dims channels, float levels, float smallest, float window,
                    bool is_signed, bool hard, Address threshold, Address unit, Typed x, Address leak, Address membrane,
                    Address checkpoints, Typed grad_events, Address grad_membrane, Typed grad_x, Address grad_leak,
                    Address grad_membrane_in) {
  const Shape shape{batch, time, channels};
  run(active.load()->event_backward,
      EventBackward{shape, settings(levels, smallest, window, is_signed, hard, threshold, unit), in(x), in(leak),
                    in(membrane), in(checkpoints), in(grad_events), in(grad_membrane), out(grad_x), out(grad_leak),
                    out(grad_membrane_in)},
      threads, shape);
}

void point_event_forward(int threads, Dims rows, Dims channels, float levels, float smallest, float window,
                         bool is_signed, Address threshold, Address unit, Typed x, Typed events, Address passes) {
  run(active.load()->point_event_forward,
      PointEvent{channels, settings(levels, smallest, window, is_signed, true, threshold, unit), in(x), out(events),
                 reinterpret_cast<uint8_t *>(passes)},
      threads, rows, rows * channels);
}

void point_event_backward(int threads, Dims rows, Dims channels, Address unit, Address passes, Typed grad_events,
                          Typed grad_x) {
  run(active.load()->point_event_backward,
      PointEventBackward{channels, in(unit), reinterpret_cast<const uint8_t *>(passes), in(grad_events), out(grad_x)},
      threads, rows, rows * channels);
}

void tally(int threads, Dims rows, Dims channels, Dims stride, float levels, Typed events, Address counts) {
  run(active.load()->tally, Tally{channels, stride, levels, in(events), reinterpret_cast<int32_t *>(counts)}, threads,
      rows, rows * channels);
}

ShiftMix shift_mix(const Shape &shape, Address x, Address last, const std::vector<Address> &mixes) {
  ShiftMix op{shape, static_cast<int>(mixes.size()), in(x), in(last), {}};
  for (size_t i = 0; i < mixes.size(); ++i) op.mixes[i] = in(mixes[i]);
  return op;
}

void shift_mix_forward(int threads, Dims batch, Dims time, Dims channels, Address x, Address last,
                       const std::vector<Address> &mixes, const std::vector<Typed> &y) {
  ShiftMixForward op{shift_mix({batch, time, channels}, x, last, mixes), {}};
  for (size_t i = 0; i < y.size(); ++i) op.y[i] = out(y[i]);
  run(active.load()->shift_mix_forward, op, threads, batch * time, batch * time * channels);
}

void shift_mix_backward(int threads, Dims batch, Dims time, Dims channels, Address x, Address last,
                        const std::vector<Address> &mixes, const std::vector<Typed> &grad_y, Address grad_x,
                        Address grad_last, Address grad_mixes) {
  const Shape shape{batch, time, channels};
  ShiftMixBackward op{shift_mix(shape, x, last, mixes), {}, out(grad_x), out(grad_last), out(grad_mixes)};
  for (size_t i = 0; i < grad_y.size(); ++i) op.grad_y[i] = in(grad_y[i]);
  run(active.load()->shift_mix_backward, op, threads, batch * ((time + kChunk - 1) / kChunk), batch * time * channels);
}

void relu_squared_forward(int threads, Dims elements, Typed x, Typed y) {
  run_flat(active.load()->relu_squared_forward, ReluSquared{elements, in(x), {}, out(y)}, threads);
}

void relu_squared_backward(int threads, Dims elements, Typed x, Typed grad_y, Typed grad_x) {
  run_flat(active.load()->relu_squared_backward, ReluSquared{elements, in(x), in(grad_y), out(grad_x)}, threads);
}

void gate_forward(int threads, Dims elements, Typed gate, Typed x, Typed y) {
  run_flat(active.load()->gate_forward, GateForward{elements, in(gate), in(x), out(y)}, threads);
}

void gate_backward(int threads, Dims elements, Typed gate, Typed x, Typed grad_y, Typed grad_gate, Typed grad_x) {
  run_flat(active.load()->gate_backward,
           GateBackward{elements, in(gate), in(x), in(grad_y), out(grad_gate), out(grad_x)}, threads);
}

void dropout(int threads, Dims elements, float p, Address seed, Typed x, Typed y) {
  run_flat(active.load()->dropout, Dropout{elements, p, integers(seed), in(x), out(y)}, threads);
}

void check_targets(const int64_t *targets, int64_t rows, int64_t classes) {
  for (int64_t row = 0; row < rows; ++row)
    if ((targets[row] < 0 || targets[row] >= classes) && targets[row] != kIgnored)
      throw std::out_of_range("target " + std::to_string(targets[row]) + " is neither 0 to " +
                              std::to_string(classes - 1) + " nor " + std::to_string(kIgnored) + " (ignored)");
}

void cross_entropy_forward(int threads, Dims rows, Dims classes, Typed logits, Address targets, Address losses,
                           Address log_totals, Address largest, Address where) {
  check_targets(integers(targets), rows, classes);
  run(active.load()->cross_entropy_forward,
      CrossEntropyForward{classes, in(logits), integers(targets), out(losses), out(log_totals), out(largest),
                          reinterpret_cast<int64_t *>(where)},
      threads, rows, rows * classes);
}

void cross_entropy_backward(int threads, Dims rows, Dims classes, float penalty, Typed logits, Address targets,
                            Address log_totals, Address largest, Address where, Address grad_losses, Typed grad) {
  run(active.load()->cross_entropy_backward,
      CrossEntropyBackward{classes, penalty, in(logits), integers(targets), in(log_totals), in(largest),
                           integers(where), in(grad_losses), out(grad)},
      threads, rows, rows * classes);
}

void divergence_forward(int threads, Dims rows, Dims classes, Typed logits, Typed teacher, Address divergences,
                        Address log_totals, Address teacher_log_totals) {
  run(active.load()->divergence_forward,
      DivergenceForward{classes, in(logits), in(teacher), out(divergences), out(log_totals), out(teacher_log_totals)},
      threads, rows, rows * classes);
}

void divergence_backward(int threads, Dims rows, Dims classes, Typed logits, Typed teacher, Address log_totals,
                         Address teacher_log_totals, Address grad_divergences, Typed grad) {
  run(active.load()->divergence_backward,
      DivergenceBackward{classes, in(logits), in(teacher), in(log_totals), in(teacher_log_totals), in(grad_divergences),
                         out(grad)},
      threads, rows, rows * classes);
}

void matvec(int threads, Dims rows, Dims inputs, Dims outputs, Address x, Address weight, Address y) {
  run(active.load()->matvec, Matvec{rows, inputs, outputs, in(x), in(weight), out(y)}, threads, outputs,
      inputs * outputs);
}

}  // namespace
}  // namespace spikegpt

NB_MODULE(_native, module) {
  using namespace spikegpt;
  using Free = nb::call_guard<nb::gil_scoped_release>;
  module.attr("CHUNK") = kChunk;
  module.def("instruction_sets", &instruction_sets, "Instruction sets this machine can run, best first.");
  module.def("use", &use, "Switch to an instruction set by name; returns the one before.");
  module.def("wkv_forward", &wkv_forward, Free());
  module.def("wkv_backward", &wkv_backward, Free());
  module.def("lif_forward", &lif_forward, Free());
  module.def("lif_backward", &lif_backward, Free());
  module.def("event_forward", &event_forward, Free());
  module.def("event_backward", &event_backward, Free());
  module.def("point_event_forward", &point_event_forward, Free());
  module.def("point_event_backward", &point_event_backward, Free());
  module.def("tally", &tally, Free());
  module.def("shift_mix_forward", &shift_mix_forward, Free());
  module.def("shift_mix_backward", &shift_mix_backward, Free());
  module.def("relu_squared_forward", &relu_squared_forward, Free());
  module.def("relu_squared_backward", &relu_squared_backward, Free());
  module.def("gate_forward", &gate_forward, Free());
  module.def("gate_backward", &gate_backward, Free());
  module.def("dropout", &dropout, Free());
  module.def("cross_entropy_forward", &cross_entropy_forward, Free());
  module.def("cross_entropy_backward", &cross_entropy_backward, Free());
  module.def("divergence_forward", &divergence_forward, Free());
  module.def("divergence_backward", &divergence_backward, Free());
  module.def("matvec", &matvec, Free());
}
