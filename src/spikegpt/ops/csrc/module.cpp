// The Python module: addresses in, kernels out. Shapes, types and contiguity are the caller's duty (native.py).
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <string>
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

// Below this many elements a thread costs more than it brings.
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

void wkv_forward(int threads, Dims batch, Dims time, Dims channels, Address decay, Address first, Address k, Address v,
                 Address state, Address y, Address state_out, Address checkpoints) {
  const Shape shape{batch, time, channels};
  run(active.load()->wkv_forward,
      WkvForward{{shape, in(decay), in(first), in(k), in(v), in(state)}, out(y), out(state_out), out(checkpoints)},
      threads, shape);
}

void wkv_backward(int threads, Dims batch, Dims time, Dims channels, Address decay, Address first, Address k, Address v,
                  Address state, Address checkpoints, Address grad_y, Address grad_state, Address grad_decay,
                  Address grad_first, Address grad_k, Address grad_v, Address grad_state_in) {
  const Shape shape{batch, time, channels};
  run(active.load()->wkv_backward,
      WkvBackward{{shape, in(decay), in(first), in(k), in(v), in(state)},
                  in(checkpoints),
                  in(grad_y),
                  in(grad_state),
                  out(grad_decay),
                  out(grad_first),
                  out(grad_k),
                  out(grad_v),
                  out(grad_state_in)},
      threads, shape);
}

void lif_forward(int threads, Dims batch, Dims time, Dims channels, float tau, float threshold, float alpha, Address x,
                 Address membrane, Address spikes, Address membrane_out, Address checkpoints) {
  const Shape shape{batch, time, channels};
  run(active.load()->lif_forward,
      LifForward{shape, {tau, threshold, alpha}, in(x), in(membrane), out(spikes), out(membrane_out), out(checkpoints)},
      threads, shape);
}

void lif_backward(int threads, Dims batch, Dims time, Dims channels, float tau, float threshold, float alpha, Address x,
                  Address membrane, Address checkpoints, Address grad_spikes, Address grad_membrane, Address grad_x,
                  Address grad_membrane_in) {
  const Shape shape{batch, time, channels};
  run(active.load()->lif_backward,
      LifBackward{shape, {tau, threshold, alpha}, in(x), in(membrane), in(checkpoints), in(grad_spikes),
                  in(grad_membrane), out(grad_x), out(grad_membrane_in)},
      threads, shape);
}

EventSettings settings(float levels, float window, bool is_signed, bool hard, Address threshold, Address unit) {
  return {levels, window, is_signed, hard, in(threshold), in(unit)};
}

void event_forward(int threads, Dims batch, Dims time, Dims channels, float levels, float window, bool is_signed,
                   bool hard, Address threshold, Address unit, Address x, Address leak, Address membrane,
                   Address events, Address membrane_out, Address checkpoints) {
  const Shape shape{batch, time, channels};
  run(active.load()->event_forward,
      EventForward{shape, settings(levels, window, is_signed, hard, threshold, unit), in(x), in(leak), in(membrane),
                   out(events), out(membrane_out), out(checkpoints)},
      threads, shape);
}

void event_backward(int threads, Dims batch, Dims time, Dims channels, float levels, float window, bool is_signed,
                    bool hard, Address threshold, Address unit, Address x, Address leak, Address membrane,
                    Address checkpoints, Address grad_events, Address grad_membrane, Address grad_x, Address grad_leak,
                    Address grad_membrane_in) {
  const Shape shape{batch, time, channels};
  run(active.load()->event_backward,
      EventBackward{shape, settings(levels, window, is_signed, hard, threshold, unit), in(x), in(leak), in(membrane),
                    in(checkpoints), in(grad_events), in(grad_membrane), out(grad_x), out(grad_leak),
                    out(grad_membrane_in)},
      threads, shape);
}

void point_event_forward(int threads, Dims rows, Dims channels, float levels, float window, bool is_signed,
                         Address threshold, Address unit, Address x, Address events) {
  run(active.load()->point_event_forward,
      PointEvent{channels, settings(levels, window, is_signed, true, threshold, unit), in(x), nullptr, out(events)},
      threads, rows, rows * channels);
}

void point_event_backward(int threads, Dims rows, Dims channels, float levels, float window, bool is_signed,
                          Address threshold, Address unit, Address x, Address grad_events, Address grad_x) {
  run(active.load()->point_event_backward,
      PointEvent{channels, settings(levels, window, is_signed, true, threshold, unit), in(x), in(grad_events),
                 out(grad_x)},
      threads, rows, rows * channels);
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
  module.def("matvec", &matvec, Free());
}
