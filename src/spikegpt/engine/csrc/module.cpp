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

#include "engine.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace spikegpt::engine {
namespace {

using Array = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using Ids = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

Tensor view(const std::string &name, const Array &array) {
  Tensor tensor{};
  if (array.dtype() == nb::dtype<float>())
    tensor.type = Tensor::kFloat;
  else if (array.dtype() == nb::dtype<int8_t>())
    tensor.type = Tensor::kInt8;
  else if (array.dtype() == nb::dtype<uint8_t>())
    tensor.type = Tensor::kUint8;
  else
    throw std::invalid_argument("tensor " + name + " is neither float32, int8 nor uint8");
  for (std::size_t i = 0; i < array.ndim(); ++i) tensor.shape.push_back(static_cast<int64_t>(array.shape(i)));
  tensor.data = array.data();
  return tensor;
}

class Handle {
 public:
  Handle(const nb::dict &arrays, const Layout &layout, int layers, int channels, int hidden, int vocab, int levels,
         int smallest, bool is_signed, bool hard, bool spike_embedding, bool ffn_pre, int threads, const std::string &isa) {
    std::vector<Array> kept;
    Tensors tensors;
    for (auto [name, value] : arrays) {
      kept.push_back(nb::cast<Array>(value));
      const std::string key = nb::cast<std::string>(name);
      tensors.emplace(key, view(key, kept.back()));
    }
    for (const auto &[name, at] : layout) size_ = at > size_ ? at : size_;
    engine_ = std::make_unique<Engine>(Settings{layers, channels, hidden, vocab, static_cast<float>(levels),
                                                static_cast<float>(smallest), is_signed, hard, spike_embedding, ffn_pre, threads, isa},
                                       tensors, layout);
  }

  void run(const Ids &ids, const Floats &state, const Rows &logits, bool only_last) {
    const std::size_t rows = only_last ? 1 : ids.shape(0);
    if (ids.shape(0) == 0 || static_cast<int64_t>(state.shape(0)) <= size_ || logits.shape(0) != rows ||
        logits.shape(1) != static_cast<std::size_t>(engine_->vocab()))
      throw std::invalid_argument("ids, state or logits have another shape");
    nb::gil_scoped_release released;
    const std::lock_guard<std::mutex> one_at_a_time(mutex_);
    engine_->run(ids.data(), static_cast<int64_t>(ids.shape(0)), state.data(), logits.data(), only_last);
  }

  uint64_t read_weights() {
    nb::gil_scoped_release released;
    const std::lock_guard<std::mutex> one_at_a_time(mutex_);
    return engine_->read_weights();
  }

  nb::list counts() const {
    nb::list all;
    for (std::size_t i = 0; i < engine_->names().size(); ++i) {
      const Site &site = engine_->site(i);
      const Counts &counts = *site.counts;
      nb::dict row;
      row["name"] = engine_->names()[i];
      row["inputs"] = site.inputs;
      row["outputs"] = site.outputs;
      row["bits"] = site.bits;
      row["steps"] = counts.steps;
      row["active"] = counts.active;
      row["units"] = counts.units;
      row["saturated"] = counts.saturated;
      if (counts.fired) row["fired"] = engine_->fired(i);
      all.append(row);
    }
    return all;
  }

  Engine &engine() { return *engine_; }

 private:
  std::unique_ptr<Engine> engine_;
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
  nb::class_<Handle>(module, "Engine", "A packed model and the threads that run it.")
      .def(nb::init<const nb::dict &, const Layout &, int, int, int, int, int, int, bool, bool, bool, bool, int,
                    const std::string &>(),
           "tensors"_a, "layout"_a, "layers"_a, "channels"_a, "hidden"_a, "vocab"_a, "levels"_a, "smallest"_a, "is_signed"_a,
           "hard"_a, "spike_embedding"_a, "ffn_pre"_a, "threads"_a, "isa"_a = "")
      .def("run", &Handle::run, "ids"_a.noconvert(), "state"_a.noconvert(), "logits"_a.noconvert(), "only_last"_a,
           "Feed tokens; `state` and `logits` are written in place.")
      .def("read_weights", &Handle::read_weights, "Read every weight once, in order; returns their sum.")
      .def("set_dense", [](Handle &self, bool dense) { self.engine().set_dense(dense); }, "dense"_a,
           "Read every weight, as an engine without events would.")
      .def("count_neurons", [](Handle &self, bool on) { self.engine().count_neurons(on); }, "on"_a,
           "Whether each neuron's events are counted too.")
      .def("reset_counts", [](Handle &self) { self.engine().reset_counts(); }, "Begin counting anew.")
      .def("counts", &Handle::counts, "One row a product, in the order they run.")
      .def_prop_ro("weight_bytes", [](Handle &self) { return self.engine().weight_bytes(); })
      .def_prop_ro("isa", [](Handle &self) { return self.engine().isa(); })
      .def_prop_ro("threads", [](Handle &self) { return self.engine().threads(); });
}
