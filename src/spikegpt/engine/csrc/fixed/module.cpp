// The Python class of the integers-only engine.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <mutex>
#include <stdexcept>

#include "../arrays.h"
#include "../bind.h"
#include "engine.h"

using namespace nanobind::literals;

namespace spikegpt::engine::fixed {
namespace {

using Ids = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Row = nb::ndarray<int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

class Handle {
 public:
  Handle(const nb::dict &arrays, const Numbers &numbers, const Numbers &offsets, const std::string &isa) {
    std::vector<Array> kept;
    engine_ = std::make_unique<Engine>(numbers, view_all(arrays, kept), offsets, isa);
  }

  void run(const Ids &ids, const Row &state, const Rows &logits, bool only_last, bool dense, Counters *counters) {
    const std::size_t rows = only_last ? 1 : ids.shape(0);
    if (ids.shape(0) == 0 || static_cast<int64_t>(state.shape(0)) < engine_->state_size() || logits.shape(0) != rows ||
        logits.shape(1) != static_cast<std::size_t>(engine_->vocab()))
      throw std::invalid_argument("ids, state or logits have another shape");
    nb::gil_scoped_release released;
    const std::lock_guard<std::mutex> one_at_a_time(mutex_);
    engine_->run(ids.data(), static_cast<int64_t>(ids.shape(0)), state.data(), logits.data(), only_last, dense,
                 counts_of(*engine_, counters));
  }

  Counters *counters(bool neurons) const { return new Counters(*engine_, neurons); }

  nb::list counts(const Counters &counters) {
    const std::lock_guard<std::mutex> one_at_a_time(mutex_);
    return rows_of(*engine_, counters);
  }

  Engine &engine() { return *engine_; }

 private:
  std::unique_ptr<Engine> engine_;
  std::mutex mutex_;
};

}  // namespace

void bind(nb::module_ &module) {
  nb::class_<Handle>(module, "FixedEngine", "A model in integers only, and the threads that run it.")
      .def(nb::init<const nb::dict &, const Numbers &, const Numbers &, const std::string &>(), "tensors"_a,
           "numbers"_a, "offsets"_a, "isa"_a = "")
      .def("run", &Handle::run, "ids"_a.noconvert(), "state"_a.noconvert(), "logits"_a.noconvert(), "only_last"_a,
           "dense"_a = false, "counters"_a = nb::none(),
           "Feed tokens; `state` and `logits`, int32, are written in place.")
      .def("counters", &Handle::counters, "neurons"_a,
           "Counters at zero, for calls of this engine; of each neuron too.")
      .def("counts", &Handle::counts, "counters"_a, "One row a product, in the order they run.")
      .def_prop_ro("isa", [](Handle &self) { return self.engine().isa(); })
      .def_prop_ro("threads", [](Handle &self) { return self.engine().threads(); });
}

}  // namespace spikegpt::engine::fixed
