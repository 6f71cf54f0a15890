// The Python module: numpy arrays in, an engine out. Shapes are checked here and in engine.cpp; files are read in Python.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
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
  Handle(const nb::dict &arrays, const std::vector<SitePlan> &sites, const std::vector<MixPlan> &mixes, int channels,
         int vocab, int levels, int smallest, bool hard, bool spike_embedding, int64_t state_size, int threads,
         const std::string &isa) {
    std::vector<Array> kept;
    const Tensors tensors = view_all(arrays, kept);
    engine_ =
        std::make_unique<Engine>(Settings{channels, vocab, static_cast<float>(levels), static_cast<float>(smallest),
                                          hard, spike_embedding, state_size, threads, isa},
                                 Plan{sites, mixes}, tensors);
    turns_ = std::make_unique<Turns>(*engine_);
  }

  void run(const Ids &ids, const Floats &state, const Rows &logits, bool only_last, bool dense, Counters *counters) {
    const std::size_t rows = only_last ? 1 : ids.shape(0);
    if (ids.shape(0) == 0 || static_cast<int64_t>(state.shape(0)) != engine_->state_size() || logits.shape(0) != rows ||
        logits.shape(1) != static_cast<std::size_t>(engine_->outputs()))
      throw std::invalid_argument("ids, state or logits have another shape");
    nb::gil_scoped_release released;
    const std::lock_guard<std::mutex> one_at_a_time(mutex_);
    engine_->run(ids.data(), static_cast<int64_t>(ids.shape(0)), state.data(), logits.data(), only_last, dense,
                 counts_of(counters));
  }

  std::vector<int64_t> advance(const std::vector<Sequence *> &sequences, bool dense, bool together,
                               Counters *counters) {
    const Claim claim(sequences);
    if (engine_->outputs() != engine_->vocab()) throw std::invalid_argument("a classifier has no next token to choose");
    for (const Sequence *sequence : sequences)
      if (sequence->state_size != engine_->state_size() || sequence->sampler->vocab() != engine_->outputs())
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

  nb::list counts(Counters &counters) { return rows_of(*engine_, copy(counters)); }

  int64_t spike_bytes(const std::string &spikes) const { return turns_->spike_bytes(spikes_named(spikes)); }

  Engine &engine() { return *engine_; }

 private:
  Counts *counts_of(Counters *counters) const { return spikegpt::engine::counts_of(*engine_, counters); }

  // Not while a pass is writing them.
  Counters copy(const Counters &counters) {
    nb::gil_scoped_release released;
    const std::lock_guard<std::mutex> one_at_a_time(mutex_);
    return counters;
  }

  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Turns> turns_;
  std::mutex mutex_;
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
  nb::class_<SitePlan>(module, "Site", "A matrix and the neuron in front of it, by the names of their tensors.")
      .def(nb::init<std::string, std::string, int, int, bool, int64_t>(), nb::kw_only(), "matrix"_a, "neuron"_a,
           "inputs"_a, "outputs"_a, "is_signed"_a, "membrane"_a);
  nb::class_<MixPlan>(module, "Mix", "A time mix or, without an output, a channel mix.")
      .def(nb::init<std::string, std::string, int, int, int, int, int64_t, int64_t>(), nb::kw_only(), "name"_a,
           "norm"_a, "key"_a, "value"_a, "receptance"_a, "output"_a = -1, "shift"_a, "wkv"_a = -1);
  nb::class_<Handle>(module, "Engine", "A packed model and the threads that run it.")
      .def(nb::init<const nb::dict &, const std::vector<SitePlan> &, const std::vector<MixPlan> &, int, int, int, int,
                    bool, bool, int64_t, int, const std::string &>(),
           nb::kw_only(), "tensors"_a, "sites"_a, "mixes"_a, "channels"_a, "vocab"_a, "levels"_a, "smallest"_a,
           "hard"_a, "spike_embedding"_a, "state_size"_a, "threads"_a, "isa"_a)
      .def("run", &Handle::run, "ids"_a.noconvert(), "state"_a.noconvert(), "logits"_a.noconvert(), "only_last"_a,
           "dense"_a = false, "counters"_a = nb::none(), "Feed tokens; `state` and `logits` are written in place.")
      .def("advance", &Handle::advance, "sequences"_a, "dense"_a = false, "together"_a = true,
           "counters"_a = nb::none(),
           "A turn of every sequence: what each chose, -1 where it chose nothing, -2 where its logits are not finite.")
      .def("read_weights", &Handle::read_weights, "Read every weight once, in order; returns their sum.")
      .def("counters", &Handle::counters, "neurons"_a,
           "Counters at zero, for calls of this engine; of each neuron too.")
      .def("counts", &Handle::counts, "counters"_a, "One row a product, in the order they run.")
      .def("spike_bytes", &Handle::spike_bytes, "spikes"_a, "Bytes of a token's spikes, as \"mask\" or \"sizes\".")
      .def_prop_ro("weight_bytes", [](Handle &self) { return self.engine().weight_bytes(); })
      .def_prop_ro("isa", [](Handle &self) { return self.engine().isa(); })
      .def_prop_ro("threads", [](Handle &self) { return self.engine().threads(); });
}
