#include "engine.h"

#include <algorithm>
#include <stdexcept>

#include "../panels.h"

namespace spikegpt::engine::fixed {

namespace baseline {
extern const Walk walk;
}
#if defined(SPIKEGPT_X86)
namespace avx2 {
extern const Walk walk;
}
namespace avx512vnni {
extern const Walk walk;
}
#endif

std::vector<const Walk *> supported() {
  std::vector<const Walk *> walks;
#if defined(SPIKEGPT_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni"))
    walks.push_back(&avx512vnni::walk);
  if (__builtin_cpu_supports("avx2")) walks.push_back(&avx2::walk);
#endif
  walks.push_back(&baseline::walk);
  return walks;
}

namespace {

const Walk *find(const std::string &name) {
  for (const Walk *walk : supported())
    if (name.empty() || name == walk->name) return walk;
  throw std::invalid_argument("this machine has no instruction set " + name);
}

std::size_t bytes_of(const Tensors &tensors) {
  std::size_t total = 0;
  for (const auto &[name, tensor] : tensors) {
    std::size_t count = 4;
    for (int64_t n : tensor.shape) count *= static_cast<std::size_t>(n);
    total += count;
  }
  return total;
}

int log2_of(int count) {
  int bits = 0;
  while (1 << (bits + 1) <= count) ++bits;
  return bits;
}

int top_of(int width) { return (1 << (width - 1)) - 1; }

std::string neuron_of(const std::string &matrix) {
  const auto dot = matrix.rfind('.');
  return dot == std::string::npos ? matrix + "_neuron" : matrix.substr(0, dot) + ".neurons" + matrix.substr(dot);
}

}  // namespace

Engine::Engine(const Numbers &numbers, const Tensors &tensors, const Numbers &offsets, const std::string &isa)
    : numbers_(&numbers),
      tensors_(&tensors),
      offsets_(&offsets),
      walk_(find(isa)),
      arena_(2 * bytes_of(tensors) + (std::size_t{64} << 20) * (1 + number("threads"))),
      team_(number("threads")) {
  model_.layers = number("n_layer");
  model_.channels = number("n_embd");
  model_.vocab = number("vocab_size");
  model_.threads = number("threads");
  model_.levels = number("levels");
  model_.smallest = number("smallest");
  model_.is_signed = number("signed");
  model_.spike_embedding = number("spike_embedding");
  hidden_ = number("hidden");
  if (model_.channels > 1 << 16) throw std::invalid_argument("more than 65536 channels");
  const Tensor &embedding = tensor("emb.weight", Tensor::kInt8, {model_.vocab, model_.channels});
  const std::size_t count = static_cast<std::size_t>(model_.vocab) * model_.channels;
  int8_t *rows = arena_.take<int8_t>(count);
  std::memcpy(rows, embedding.data, count);
  model_.embedding = rows;
  model_.embedding_mean = integers("emb.mean", model_.vocab);
  model_.embedding_multiplier = integers("emb.multiplier", model_.vocab);
  model_.arithmetic = arithmetic();
  model_.ln0 = norm("blocks.0.ln0");
  model_.ln_out = norm("ln_out");
  for (int layer = 0; layer < model_.layers; ++layer) {
    mixes_.push_back(add_mix(layer, true));
    mixes_.push_back(add_mix(layer, false));
  }
  model_.mixes = mixes_.data();
  model_.head = add_site("head", "logit", model_.channels, model_.vocab, model_.is_signed);
  make_buffers();
  share_ = {&team_, [](void *team, uint64_t section, int finished, int index) {
              return static_cast<Team *>(team)->next(section, finished, index);
            }};
  numbers_ = nullptr;
  tensors_ = nullptr;
  offsets_ = nullptr;
}

int Engine::number(const std::string &name) const {
  const auto found = numbers_->find(name);
  if (found == numbers_->end()) throw std::invalid_argument("there is no number " + name);
  return static_cast<int>(found->second);
}

const Tensor &Engine::tensor(const std::string &name, Tensor::Type type, const std::vector<int64_t> &shape) const {
  const auto found = tensors_->find(name);
  if (found == tensors_->end()) throw std::invalid_argument("there is no tensor " + name);
  if (found->second.type != type || found->second.shape != shape)
    throw std::invalid_argument("tensor " + name + " has another type or shape");
  return found->second;
}

const int32_t *Engine::integers(const std::string &name, int64_t count) {
  const Tensor &from = tensor(name, Tensor::kInt32, {count});
  int32_t *to = arena_.take<int32_t>(round_up(static_cast<int>(count), 64));
  std::memcpy(to, from.data, sizeof(int32_t) * count);
  return to;
}

Norm Engine::norm(const std::string &name) {
  return {integers(name + ".gain", model_.channels), integers(name + ".bias", model_.channels),
          integer(name + ".shift")};
}

Mixing Engine::mixing(const std::string &name) {
  return {integers(name + ".multiplier", model_.channels), integer(name + ".shift")};
}

Arithmetic Engine::arithmetic() {
  const int exp = number("exp_entries"), sigmoid = number("sigmoid_entries"), rsqrt = number("rsqrt_entries");
  const int reciprocal = number("reciprocal_entries");
  Arithmetic a{};
  a.exp = integers("table.exp", exp);
  a.sigmoid = integers("table.sigmoid", sigmoid);
  a.rsqrt = integers("table.rsqrt", rsqrt);
  a.reciprocal = integers("table.reciprocal", reciprocal);
  a.exponent_fraction = number("exponent.fraction");
  a.gate_fraction = number("gate.fraction");
  a.norm_fraction = number("norm.fraction");
  a.output_fraction = number("output.fraction");
  a.exp_shift = a.exponent_fraction - log2_of(exp);
  a.sigmoid_shift = a.gate_fraction + 4 - log2_of(sigmoid);
  a.rsqrt_quarter = rsqrt / 3;
  a.reciprocal_shift = 15 - log2_of(reciprocal);
  a.table_bits = number("table_bits");
  a.residual_top = top_of(number("residual.width"));
  a.norm_top = top_of(number("norm.width"));
  a.output_top = top_of(number("output.width"));
  a.exponent_top = top_of(number("exponent.width"));
  a.numerator_top = top_of(number("numerator.width"));
  a.key_shift = a.exponent_fraction - number("key.fraction");
  a.value_shift = number("numerator.fraction") - number("value.fraction");
  a.one = 1 << number("denominator.fraction");
  a.mean = integer("mean");
  a.epsilon = integer("epsilon");
  a.embedding_fraction = number("embedding_fraction");
  a.embedding_shift = integer("emb.shift") + a.embedding_fraction - a.norm_fraction;
  a.residual_shift = a.norm_fraction - number("residual.fraction");
  return a;
}

Site *Engine::add_site(const std::string &matrix, const std::string &format, int inputs, int outputs, bool is_signed) {
  const auto found = tensors_->find(matrix + ".weight");
  const auto multiplier = tensors_->find(matrix + ".multiplier");
  if (found == tensors_->end() || multiplier == tensors_->end() || multiplier->second.shape.size() != 2)
    throw std::invalid_argument("there are no weights or multipliers of " + matrix);
  auto site = std::make_unique<Site>();
  site->inputs = inputs;
  site->outputs = outputs;
  site->bits = found->second.type == Tensor::kUint8 ? 4 : 8;
  site->offset = site->bits == 4 ? 8 : 128;
  site->is_signed = is_signed;
  site->membrane = -1;
  site->stride = round_up(inputs, 64);
  site->events = arena_.take<int8_t>(static_cast<std::size_t>(kTokens) * site->stride);
  site->groups = static_cast<int>(multiplier->second.shape[0]);
  site->group_inputs = site->groups == 1 ? inputs : number("group");
  if (divide_up(inputs, site->group_inputs) != site->groups)
    throw std::invalid_argument(matrix + " has another number of groups");
  site->index = static_cast<int>(sites_.size());
  lay_out(*site,
          tensor(matrix + ".weight", found->second.type, {inputs, site->bits == 4 ? divide_up(outputs, 2) : outputs}),
          walk_->place, model_.threads, arena_);
  const int32_t *from =
      static_cast<const int32_t *>(tensor(matrix + ".multiplier", Tensor::kInt32, {site->groups, outputs}).data);
  int32_t *to = arena_.take<int32_t>(static_cast<std::size_t>(site->groups) * site->padded);
  for (int group = 0; group < site->groups; ++group)
    std::memcpy(to + static_cast<int64_t>(group) * site->padded, from + static_cast<int64_t>(group) * outputs,
                sizeof(int32_t) * outputs);
  site->multiplier = to;
  site->shift = integer(matrix + ".shift");
  site->top = top_of(number(format + ".width"));
  const int32_t *event = integers(matrix + ".event", 3);
  site->event_multiplier = event[0];
  site->event_offset = event[1];
  site->event_shift = event[2];
  site->square = tensors_->count(matrix + ".square") ? integer(matrix + ".square") : -1;
  sites_.push_back(std::move(site));
  names_.push_back(neuron_of(matrix));
  return sites_.back().get();
}

Mix Engine::add_mix(int layer, bool is_first) {
  const int channels = model_.channels;
  const std::string block = "blocks." + std::to_string(layer), state = block + (is_first ? ".att" : ".ffn");
  const bool is_time = is_first && !(layer == 0 && number("ffn_pre"));
  const std::string name = is_first && !is_time ? block + ".ffnPre" : state;
  const auto offset = [&](const std::string &part) {
    const auto found = offsets_->find(part);
    if (found == offsets_->end()) throw std::invalid_argument("the state has no " + part);
    return found->second;
  };
  Mix mix{};
  mix.is_time = is_time;
  mix.norm = norm(block + (is_first ? ".ln1" : ".ln2"));
  mix.shift = offset(state + ".shift");
  state_size_ = std::max<int64_t>(state_size_, mix.shift + channels);
  mix.mix_k = mixing(name + ".time_mix_k");
  mix.mix_r = mixing(name + ".time_mix_r");
  if (!is_time) {
    mix.key = add_site(name + ".key", "hidden", channels, hidden_, model_.is_signed);
    mix.receptance = add_site(name + ".receptance", "gate", channels, channels, model_.is_signed);
    mix.value = add_site(name + ".value", "residual", hidden_, channels, false);
    return mix;
  }
  mix.wkv = offset(state + ".wkv");
  state_size_ = std::max<int64_t>(state_size_, mix.wkv + 3 * channels);
  mix.mix_v = mixing(name + ".time_mix_v");
  mix.decay = integers(name + ".decay", channels);
  mix.first = integers(name + ".first", channels);
  mix.key = add_site(name + ".key", "key", channels, channels, model_.is_signed);
  mix.value = add_site(name + ".value", "value", channels, channels, model_.is_signed);
  mix.receptance = add_site(name + ".receptance", "gate", channels, channels, model_.is_signed);
  mix.output = add_site(name + ".output", "residual", channels, channels, model_.is_signed);
  return mix;
}

void Engine::make_buffers() {
  int inputs = 0, groups = 0;
  model_.stride = round_up(model_.channels, 64);
  model_.hidden_stride = round_up(hidden_, 64);
  for (const auto &site : sites_) {
    inputs = std::max(inputs, site->stride);
    groups = std::max(groups, site->groups);
    if (site.get() == model_.head) continue;
    if (site->outputs == model_.channels) model_.stride = std::max(model_.stride, site->padded);
    if (site->outputs == hidden_) model_.hidden_stride = std::max(model_.hidden_stride, site->padded);
  }
  for (int32_t **buffer : {&model_.x, &model_.normed, &model_.k, &model_.v, &model_.r})
    *buffer = arena_.take<int32_t>(static_cast<std::size_t>(kTokens) * model_.stride);
  model_.hidden = arena_.take<int32_t>(static_cast<std::size_t>(kTokens) * model_.hidden_stride);
  const std::size_t longest = inputs + 8 * groups;  // every group is padded to whole steps of the products
  for (int index = 0; index < model_.threads; ++index) {
    Worker worker{};
    worker.index = index;
    // memory of 32-bit values, here integers
    worker.scratch = arena_.take<float>(std::max(model_.stride, kPanelOutputs));
    for (auto &slot : worker.lists)
      for (Events &list : slot)
        list = {arena_.take<uint32_t>(longest), arena_.take<int8_t>(longest), arena_.take<int>(groups + 1),
                arena_.take<int>(groups)};
    workers_.push_back(worker);
  }
}

void Engine::run(const int64_t *ids, int64_t tokens, int32_t *state, int32_t *logits, bool only_last, bool dense,
                 Counts *counts) {
  for (int64_t i = 0; i < tokens; ++i)
    if (ids[i] < 0 || ids[i] >= model_.vocab)
      throw std::out_of_range("token " + std::to_string(ids[i]) + " is not in the vocabulary");
  for (int64_t from = 0; from < tokens; from += kTokens) {
    const int now = static_cast<int>(std::min<int64_t>(kTokens, tokens - from));
    const bool last = from + now == tokens;
    pass_ = {ids + from, now, state, logits, only_last ? (last ? now - 1 : now) : 0, dense, counts};
    team_.run(
        [](void *context, int index, uint64_t first) {
          Engine &self = *static_cast<Engine *>(context);
          return self.walk_->run(self.model_, self.workers_[index], self.pass_, self.share_, first);
        },
        this);
    if (!only_last) logits += static_cast<int64_t>(now) * model_.vocab;
  }
}

}  // namespace spikegpt::engine::fixed
