// The Python module: numpy arrays in, engines out. Shapes are checked here and in base.h; files are read in Python.
#include <nanobind/stl/map.h>

#include "engine.h"
#include "fixed/engine.h"
#include "handle.h"

using namespace nanobind::literals;

namespace spikegpt::engine {
namespace {

using Sites = std::vector<SitePlan>;
using Mixes = std::vector<MixPlan>;

void make_engine(Handle<Engine> *self, const nb::dict &tensors, const Sites &sites, const Mixes &mixes, int channels,
                 int vocab, int levels, int smallest, bool hard, bool spike_embedding, int64_t state_size, int threads,
                 const std::string &isa) {
  const Settings settings{channels, vocab, levels, smallest, hard, spike_embedding, state_size, threads, isa};
  new (self) Handle<Engine>(settings, Plan{sites, mixes}, tensors);
}

void make_fixed_engine(Handle<fixed::Engine> *self, const nb::dict &tensors, const Sites &sites, const Mixes &mixes,
                       const fixed::Numbers &formats, int channels, int vocab, int levels, int smallest,
                       bool spike_embedding, int64_t state_size, int threads, const std::string &isa) {
  const Settings settings{channels, vocab, levels, smallest, true, spike_embedding, state_size, threads, isa};
  new (self) Handle<fixed::Engine>(settings, Plan{sites, mixes}, tensors, formats);
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
#define SPIKEGPT_NAME(isa) \
  if (runs(#isa)) names.emplace_back(#isa);
  SPIKEGPT_EACH_ISA(SPIKEGPT_NAME)
  return names;
}

}  // namespace
}  // namespace spikegpt::engine

NB_MODULE(_engine, module) {
  using namespace spikegpt::engine;
  module.doc() = "The event-driven engines.";
  module.def("instruction_sets", &instruction_sets, "What this machine can run, best first.");
  bind_sampling(module);
  nb::class_<Counters>(module, "Counters", "What calls counted that were given these.")
      .def("add", &Counters::add, "other"_a, "Adds what others have counted; no call may be counting.");
  nb::class_<SitePlan>(module, "Site", "A matrix and the neuron in front of it, by the names of their tensors.")
      .def(nb::init<std::string, std::string, int, int, bool, int64_t, int>(), nb::kw_only(), "matrix"_a, "neuron"_a,
           "inputs"_a, "outputs"_a, "is_signed"_a, "membrane"_a, "runs"_a);
  nb::class_<MixPlan>(module, "Mix", "A time mix or, without an output, a channel mix.")
      .def(nb::init<std::string, std::string, int, int, int, int, int, int64_t, int64_t>(), nb::kw_only(), "name"_a,
           "norm"_a, "key"_a = -1, "value"_a = -1, "receptance"_a = -1, "output"_a = -1, "input"_a = -1, "shift"_a,
           "wkv"_a = -1);
  bind_engine<Engine>(module, "Engine", "A packed model and the threads that run it.")
      .def("__init__", &make_engine, nb::kw_only(), "tensors"_a, "sites"_a, "mixes"_a, "channels"_a, "vocab"_a,
           "levels"_a, "smallest"_a, "hard"_a, "spike_embedding"_a, "state_size"_a, "threads"_a, "isa"_a);
  bind_engine<fixed::Engine>(module, "FixedEngine", "A model in integers only, and the threads that run it.")
      .def("__init__", &make_fixed_engine, nb::kw_only(), "tensors"_a, "sites"_a, "mixes"_a, "formats"_a, "channels"_a,
           "vocab"_a, "levels"_a, "smallest"_a, "spike_embedding"_a, "state_size"_a, "threads"_a, "isa"_a);
}
