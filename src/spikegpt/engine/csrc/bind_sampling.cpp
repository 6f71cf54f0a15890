// Samplers and sequences as Python sees them.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <utility>

#include "bind.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace spikegpt::engine {

Claim::Claim(const std::vector<Sequence *> &sequences) : sequences_(sequences) {
  for (Sequence *sequence : sequences) {
    if (!sequence || sequence->busy.exchange(true)) {
      this->~Claim();
      throw std::invalid_argument("a sequence stands in two calls, or twice in one");
    }
    ++claimed_;
  }
}

Claim::~Claim() {
  for (; claimed_ > 0; --claimed_) sequences_[claimed_ - 1]->busy = false;
}

Spikes spikes_named(const std::string &name) {
  if (name == "none") return Spikes::kNone;
  if (name == "mask") return Spikes::kMask;
  if (name == "sizes") return Spikes::kSizes;
  throw std::invalid_argument("spikes are \"none\", \"mask\" or \"sizes\", not " + name);
}

namespace {

using Ids = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class Value>
using State = nb::ndarray<Value, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Logits = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void check_ids(const Ids &ids, int vocab) {
  for (std::size_t i = 0; i < ids.shape(0); ++i)
    if (ids.data()[i] < 0 || ids.data()[i] >= vocab)
      throw std::out_of_range("token " + std::to_string(ids.data()[i]) + " is not in the vocabulary");
}

std::shared_ptr<Sampler> make_sampler(int vocab, float temperature, int top_k, float top_p, float min_p,
                                      float repetition, float presence, float frequency,
                                      std::vector<std::pair<int, float>> bias, uint64_t seed) {
  if (vocab < 1) throw std::invalid_argument("a vocabulary has at least one token");
  for (const auto &[token, value] : bias)
    if (token < 0 || token >= vocab)
      throw std::out_of_range("token " + std::to_string(token) + " is not in the vocabulary");
  return std::make_shared<Sampler>(
      Sampling{temperature, top_k, top_p, min_p, repetition, presence, frequency, std::move(bias), seed}, vocab);
}

int64_t choose(Sampler &sampler, const Logits &logits) {
  if (logits.shape(0) != static_cast<std::size_t>(sampler.vocab()))
    throw std::invalid_argument("logits have another shape");
  Scratch scratch(sampler.vocab());
  return sampler.choose(logits.data(), scratch, loops_of(""), -1, nullptr);
}

void read(Sampler &sampler, const Ids &ids) {
  check_ids(ids, sampler.vocab());
  for (std::size_t i = 0; i < ids.shape(0); ++i) sampler.read(ids.data()[i]);
}

void restore(Sampler &sampler, const Ids &ids, const Ids &times) {
  check_ids(ids, sampler.vocab());
  if (ids.shape(0) != times.shape(0)) throw std::invalid_argument("as many numbers as tokens are needed");
  for (std::size_t i = 0; i < ids.shape(0); ++i) sampler.restore(ids.data()[i], times.data()[i]);
}

template <class Value>
std::shared_ptr<Sequence> make_sequence(const State<Value> &state, const Ids &ids, std::shared_ptr<Sampler> sampler,
                                        int logprobs, bool echo, bool chooses, const std::string &spikes,
                                        bool reads_last) {
  if (ids.shape(0) == 0 || (chooses && !reads_last))
    throw std::invalid_argument("a text reads something, and all of it before it chooses");
  check_ids(ids, sampler->vocab());
  auto made = std::make_shared<Sequence>();
  made->state = state.data();
  made->owner = std::make_shared<State<Value>>(state);
  made->state_size = static_cast<int64_t>(state.shape(0));
  made->unread.assign(ids.data(), ids.data() + ids.shape(0));
  made->sampler = std::move(sampler);
  made->logprobs = logprobs;
  made->echo = echo;
  made->chooses = chooses;
  made->spikes = spikes_named(spikes);
  made->reads_last = reads_last;
  return made;
}

// Calls `define` with the function that makes a sequence of each type of state.
template <class... Values, class Define>
void for_states(const Define &define) {
  (define(&make_sequence<Values>), ...);
}

void check_idle(const Sequence &sequence) {
  if (sequence.busy) throw std::runtime_error("the sequence is in a call of another thread");
}

nb::list take_scores(Sequence &sequence) {
  check_idle(sequence);
  nb::list all;
  for (const Score &score : std::exchange(sequence.scores, {}))
    all.append(nb::make_tuple(score.token, score.logprob, score.top));
  return all;
}

nb::bytes take_spikes(Sequence &sequence) {
  check_idle(sequence);
  const std::vector<uint8_t> bytes = std::exchange(sequence.fired, {});
  return nb::bytes(reinterpret_cast<const char *>(bytes.data()), bytes.size());
}

std::vector<int64_t> unread(const Sequence &sequence) {
  check_idle(sequence);
  return {sequence.unread.begin() + static_cast<std::ptrdiff_t>(sequence.at), sequence.unread.end()};
}

}  // namespace

void bind_sampling(nb::module_ &module) {
  nb::class_<Sampler>(module, "Sampler", "How one text's tokens are chosen; it has a random stream of its own.")
      .def(nb::new_(&make_sampler), "vocab"_a, "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "repetition_penalty"_a,
           "presence_penalty"_a, "frequency_penalty"_a, "bias"_a, "seed"_a)
      .def("choose", &choose, "logits"_a, "The next token after logits [V]; -2 where they are not finite.")
      .def("restore", &restore, "ids"_a.noconvert(), "times"_a.noconvert(),
           "Says how often the text chose each token before.")
      .def("read", &read, "ids"_a.noconvert(), "Says that the text has these tokens.");
  nb::class_<Sequence> sequence(module, "Sequence",
                                "A text and its state [size], float32 or int32, written in place.");
  for_states<float, int32_t>([&](auto make) {
    sequence.def(nb::new_(make), "state"_a.noconvert(), "ids"_a.noconvert(), "sampler"_a, "logprobs"_a = -1,
                 "echo"_a = false, "chooses"_a = true, "spikes"_a = "none", "reads_last"_a = true);
  });
  sequence
      .def("take_scores", &take_scores,
           "(token, logprob, [(token, logprob) of the likeliest]) of every token scored since the last call.")
      .def("take_spikes", &take_spikes, "Who fired at every token read since the last call.")
      .def_prop_ro("waiting", &Sequence::waiting, "Tokens that were not read yet, the one chosen last included.")
      .def_prop_ro("unread", &unread, "Those tokens.");
}

}  // namespace spikegpt::engine
