// The Python module: numpy arrays in, an engine out. Shapes are checked here and in engine.cpp; files are Python's affair.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "arrays.h"
#include "bind.h"
#include "engine.h"
#include "turn.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace spikegpt::engine {
namespace {

using Ids = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

class Handle {
 public:
  Handle(const nb::dict &arrays, const Layout &layout, int layers, int channels, int hidden, int vocab, int levels,
         int smallest, bool is_signed, bool hard, bool spike_embedding, bool ffn_pre, int threads, const std::string &isa) {
    std::vector<Array> kept;
    const Tensors tensors = view_all(arrays, kept);
    for (const auto &[name, at] : layout) size_ = at > size_ ? at : size_;
    engine_ = std::make_unique<Engine>(Settings{layers, channels, hidden, vocab, static_cast<float>(levels),
                                                static_cast<float>(smallest), is_signed, hard, spike_embedding, ffn_pre, threads, isa},
                                       tensors, layout);
    turns_ = std::make_unique<Turns>(*engine_);
  }

  void run(const Ids &ids, const Floats &state, const Rows &logits, bool only_last, bool dense, Counters *counters) {
    const std::size_t rows = only_last ? 1 : ids.shape(0);
    if (ids.shape(0) == 0 || static_cast<int64_t>(state.shape(0)) <= size_ || logits.shape(0) != rows ||
        logits.shape(1) != static_cast<std::size_t>(engine_->vocab()))
      throw std::invalid_argument("ids, state or logits have another shape");
    nb::gil_scoped_release released;
    const std::lock_guard<std::mutex> one_at_a_time(mutex_);
    engine_->run(ids.data(), static_cast<int64_t>(ids.shape(0)), state.data(), logits.data(), only_last, dense,
                 counts_of(counters));
  }

  std::vector<int64_t> advance(const std::vector<Sequence *> &sequences, bool dense, bool together,
                               Counters *counters) {
    const Claim claim(sequences);
    for (const Sequence *sequence : sequences)
      if (sequence->state_size <= size_ || sequence->sampler->vocab() != engine_->vocab())
        throw std::invalid_argument("a sequence is of a model of another shape");
    nb::gil_scoped_release released;
    const std::lock_guard<std::mutex> one_at_a_time(mutex_);
    return turns_->advance(sequences, dense, together, counts_of(counters));
  }

  Counters *counters(bool neurons) const { return new Counters(*engine_, neurons); }

  uint64_t read_weights() {
    nb::gil_scoped_release released;
    const std::lock_guard<std::mutex> one_at_a_time(mutex_);
    return engine_->read_weights();
  }

  nb::list counts(Counters &counters) {
    return rows_of(*engine_, copy(counters));
  }

  int64_t spike_bytes(const std::string &spikes) const { return turns_->spike_bytes(spikes_named(spikes)); }

  Engine &engine() { return *engine_; }

 private:
  Counts *counts_of(Counters *counters) const {
    return spikegpt::engine::counts_of(*engine_, counters);
  }

  // Not while a pass is writing them.
  Counters copy(const Counters &counters) {
    nb::gil_scoped_release released;
    const std::lock_guard<std::mutex> one_at_a_time(mutex_);
    return counters;
  }

  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Turns> turns_;
  std::mutex mutex_;
  int64_t size_ = 0;
};

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Walk *walk : supported()) names.emplace_back(walk->name);
  return names;
}

}  // namespace
}  // namespace spikegpt::engine

NB_MODULE(_engine, module) {
  using namespace spikegpt::engine;
  module.doc() = "The event-driven engine.";
  module.def("instruction_sets", &instruction_sets, "What this machine can run, best first.");
  bind_sampling(module);
  fixed::bind(module);
  nb::class_<Counters>(module, "Counters", "What calls counted that were given these.")
      .def("add", &Counters::add, "other"_a, "Adds what others have counted; no call may be counting.");
  nb::class_<Handle>(module, "Engine", "A packed model and the threads that run it.")
      .def(nb::init<const nb::dict &, const Layout &, int, int, int, int, int, int, bool, bool, bool, bool, int,
                    const std::string &>(),
           "tensors"_a, "layout"_a, "layers"_a, "channels"_a, "hidden"_a, "vocab"_a, "levels"_a, "smallest"_a, "is_signed"_a,
           "hard"_a, "spike_embedding"_a, "ffn_pre"_a, "threads"_a, "isa"_a = "")
      .def("run", &Handle::run, "ids"_a.noconvert(), "state"_a.noconvert(), "logits"_a.noconvert(), "only_last"_a,
           "dense"_a = false, "counters"_a = nb::none(), "Feed tokens; `state` and `logits` are written in place.")
      .def("advance", &Handle::advance, "sequences"_a, "dense"_a = false, "together"_a = true,
           "counters"_a = nb::none(),
           "A turn of every sequence: what each chose, -1 where it chose nothing, -2 where its logits are not finite.")
      .def("read_weights", &Handle::read_weights, "Read every weight once, in order; returns their sum.")
      .def("counters", &Handle::counters, "neurons"_a, "Counters at zero, for calls of this engine; of each neuron too.")
      .def("counts", &Handle::counts, "counters"_a, "One row a product, in the order they run.")
      .def("spike_bytes", &Handle::spike_bytes, "spikes"_a, "Bytes of a token's spikes, as \"mask\" or \"sizes\".")
      .def_prop_ro("weight_bytes", [](Handle &self) { return self.engine().weight_bytes(); })
      .def_prop_ro("isa", [](Handle &self) { return self.engine().isa(); })
      .def_prop_ro("threads", [](Handle &self) { return self.engine().threads(); });
}
