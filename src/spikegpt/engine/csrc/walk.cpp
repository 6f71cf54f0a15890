// One pass of one thread through the model: up to kTokens tokens, from their ids to the logits.
// A thread owns a range of channels, in whole tiles: it computes their norms, neurons, products and averages, so that the
// team need only meet where everybody's events, or everybody's residual, are read.
#include "elementwise.h"
#include "product.h"

namespace {

inline uint64_t nonzero(const int8_t *events) {
#if defined(__AVX512BW__)
  const __m512i all = _mm512_load_si512(events);
  return _mm512_test_epi8_mask(all, all);
#elif defined(__AVX2__)
  const __m256i zero = _mm256_setzero_si256();
  const __m256i *halves = reinterpret_cast<const __m256i *>(events);
  const uint32_t low = _mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_load_si256(halves), zero));
  const uint32_t high = _mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_load_si256(halves + 1), zero));
  return ~(static_cast<uint64_t>(high) << 32 | low);
#else
  uint64_t mask = 0;
  for (int i = 0; i < 64; ++i) mask |= static_cast<uint64_t>(events[i] != 0) << i;
  return mask;
#endif
}

inline int lowest(uint64_t mask) {
#if defined(__GNUC__)
  return __builtin_ctzll(mask);
#else
  int bit = 0;
  while (!(mask >> bit & 1)) ++bit;
  return bit;
#endif
}

// Lists the inputs of `site` that fired (or, in a dense engine, all of them), group by group.
void gather(const Site &site, const int8_t *events, bool dense, const Events &list) {
  int count = 0;
  for (int group = 0; group < site.groups; ++group) {
    list.begin[group] = count;
    const int begin = group * site.group_inputs;
    const int end = begin + site.group_inputs < site.inputs ? begin + site.group_inputs : site.inputs;
    for (int base = begin; base < end; base += 64) {
      uint64_t mask = nonzero(events + base);
      if (dense) mask = end - base < 64 ? (uint64_t{1} << (end - base)) - 1 : ~uint64_t{0};
      for (; mask; mask &= mask - 1, ++count) {
        const int input = base + lowest(mask);
        list.offset[count] = static_cast<uint32_t>(input) * site.row_bytes;
        list.value[count] = events[input];
      }
    }
    int sum = 0;
    for (int i = list.begin[group]; i < count; ++i) sum += list.value[i];
    list.sum[group] = sum;
    for (; count % kRows; ++count) {
      list.offset[count] = list.offset[count - 1];
      list.value[count] = 0;
    }
  }
  list.begin[site.groups] = count;
}

void count(Site &site, const int8_t *events, const Events &list, int levels) {
  ++site.steps;
  for (int i = 0; i < list.begin[site.groups]; ++i) {
    const int size = list.value[i] < 0 ? -list.value[i] : list.value[i];
    site.active += size != 0;
    site.units += size;
    site.saturated += size == levels;
  }
  if (site.fired)
    for (int i = 0; i < site.inputs; ++i) site.fired[i] += events[i] != 0;
}

struct Range {
  int begin, end;
};

class Walker {
 public:
  Walker(Model &model, Worker &worker, const Pass &pass, void (*meet)(void *), void *team)
      : model_(model), worker_(worker), pass_(pass), meet_(meet), team_(team), own_(outputs_of(*model.mixes->key)) {
    own_ = outputs_of(*model.mixes->receptance);
  }

  void run() {
    embed();
    for (int i = 0; i < 2 * model_.layers; ++i) model_.mixes[i].is_time ? time_mix(model_.mixes[i]) : channel_mix(model_.mixes[i]);
    head();
  }

 private:
  Range tiles_of(const Site &site) const {
    return {site.tiles * worker_.index / model_.threads, site.tiles * (worker_.index + 1) / model_.threads};
  }

  Range outputs_of(const Site &site) const {
    const Range tiles = tiles_of(site);
    const int begin = tiles.begin * site.tile_outputs, end = tiles.end * site.tile_outputs;
    return {begin < site.outputs ? begin : site.outputs, end < site.outputs ? end : site.outputs};
  }

  float *row(float *of, int t) const { return of + static_cast<int64_t>(t) * model_.stride; }
  float *hidden(int t) const { return model_.hidden + static_cast<int64_t>(t) * model_.hidden_stride; }
  void meet() { meet_(team_); }

  void embed() {
    const int channels = model_.channels;
    float *values = worker_.scratch;
    for (int t = 0; t < pass_.tokens; ++t) {
      const int64_t id = pass_.ids[t];
      const int8_t *__restrict integers = model_.embedding + id * channels;
      const float scale = model_.embedding_scale[id];
      if (model_.spike_embedding)
        for (int c = 0; c < channels; ++c) values[c] = integers[c] >= 0 ? 1.0f : 0.0f;
      else
        for (int c = 0; c < channels; ++c) values[c] = static_cast<float>(integers[c]) * scale;
      normalise(values, moments(values, channels), model_.ln0, own_.begin, own_.end, row(model_.x, t));
    }
    meet();
  }

  // normed = norm(x), and what the neurons in front of the given sites make of it, mixed with the token before.
  void listen(const Mix &mix, const Site *const *sites, const float *const *weights, int count) {
    float *shift = pass_.state + mix.shift;
    float *mixed = worker_.scratch;
    const float *last = shift;
    for (int t = 0; t < pass_.tokens; ++t) {
      float *normed = row(model_.normed, t);
      const float *x = row(model_.x, t);
      normalise(x, moments(x, model_.channels), mix.norm, own_.begin, own_.end, normed);
      for (int i = 0; i < count; ++i) {
        mix_tokens(last, normed, weights[i], own_.begin, own_.end, mixed);
        fire(model_, *sites[i], mixed, own_.begin, own_.end, pass_.state, t);
      }
      last = normed;
    }
    if (own_.end > own_.begin) std::memcpy(shift + own_.begin, last + own_.begin, sizeof(float) * (own_.end - own_.begin));
    meet();
  }

  void list(Site &site, int slot, int first = 0) {
    for (int t = 0; t < pass_.tokens; ++t) {
      const int8_t *events = site.events + static_cast<int64_t>(t) * site.stride;
      const Events &into = worker_.lists[slot][t];
      gather(site, events, model_.dense && t >= first, into);
      if (worker_.index == 0) count(site, events, into, static_cast<int>(model_.levels));
    }
  }

  // Runs the job before this one, now that it is known what to fetch meanwhile.
  void submit(const Job &job) {
    if (waiting_) carry_out(&job);
    job_ = job;
    waiting_ = true;
  }

  void flush() {
    if (waiting_) carry_out(nullptr);
    waiting_ = false;
  }

  void carry_out(const Job *next) {
    product(job_, next);
    if (job_.copy) std::memcpy(job_.copy, job_.out, sizeof(float) * job_.copied);
  }

  // This thread's tiles of a product of the tokens from `first` on; row t of the outputs begins at out + t * stride.
  // `owned`: where rows are exactly as wide as the matrix, the last tile goes by way of the scratch.
  void multiply(const Site &site, int slot, float *out, int64_t stride, int first = 0, bool exact = false) {
    const Range tiles = tiles_of(site);
    const int64_t padded = static_cast<int64_t>(site.tiles) * site.tile_outputs;
    for (int tile = tiles.begin; tile < tiles.end; ++tile) {
      const int begin = tile * site.tile_outputs, left = site.outputs - begin;
      const uint8_t *weights = site.weights + static_cast<int64_t>(tile) * site.inputs * site.row_bytes;
      const bool by_scratch = exact && left < site.tile_outputs;
      for (int t = first; t < pass_.tokens; ++t) {
        const Events &events = worker_.lists[slot][t];
        float *to = out + t * stride + begin;
        for (int group = 0; group < site.groups; ++group) {
          const int from = events.begin[group];
          const bool last = by_scratch && group == site.groups - 1;
          submit({&site, weights, events.offset + from, events.value + from, events.begin[group + 1] - from,
                  events.sum[group], site.scale + group * padded + begin, by_scratch ? worker_.scratch : to, group > 0,
                  last ? to : nullptr, left});
        }
      }
    }
  }

  void add_to_residual(int t, const float *__restrict y) {
    float *__restrict x = row(model_.x, t);
    for (int c = own_.begin; c < own_.end; ++c) x[c] += y[c];
  }

  void time_mix(const Mix &mix) {
    Site *const sites[] = {mix.key, mix.value, mix.receptance};
    const float *const weights[] = {mix.mix_k, mix.mix_v, mix.mix_r};
    float *const outs[] = {model_.k, model_.v, model_.r};
    listen(mix, sites, weights, 3);
    for (int i = 0; i < 3; ++i) {
      list(*sites[i], i);
      multiply(*sites[i], i, outs[i], model_.stride);
    }
    flush();
    for (int t = 0; t < pass_.tokens; ++t) {
      wkv(mix, row(model_.k, t), row(model_.v, t), row(model_.r, t), own_.begin, own_.end, model_.channels,
          pass_.state + mix.wkv, worker_.scratch);
      fire(model_, *mix.output, worker_.scratch, own_.begin, own_.end, pass_.state, t);
    }
    meet();
    list(*mix.output, 0);
    multiply(*mix.output, 0, model_.k, model_.stride);
    flush();
    for (int t = 0; t < pass_.tokens; ++t) add_to_residual(t, row(model_.k, t));
    meet();
  }

  void channel_mix(const Mix &mix) {
    Site *const sites[] = {mix.key, mix.receptance};
    const float *const weights[] = {mix.mix_k, mix.mix_r};
    listen(mix, sites, weights, 2);
    list(*mix.key, 0);
    multiply(*mix.key, 0, model_.hidden, model_.hidden_stride);
    list(*mix.receptance, 1);
    multiply(*mix.receptance, 1, model_.r, model_.stride);
    flush();
    const Range hidden_own = outputs_of(*mix.key);
    for (int t = 0; t < pass_.tokens; ++t) {
      float *__restrict values = hidden(t);
      for (int c = hidden_own.begin; c < hidden_own.end; ++c) {
        const float positive = values[c] > 0.0f ? values[c] : 0.0f;
        values[c] = positive * positive;
      }
      fire(model_, *mix.value, values, hidden_own.begin, hidden_own.end, pass_.state, t);
    }
    meet();
    list(*mix.value, 0);
    multiply(*mix.value, 0, model_.k, model_.stride);
    flush();
    for (int t = 0; t < pass_.tokens; ++t) {
      float *__restrict y = row(model_.k, t);
      const float *__restrict r = row(model_.r, t);
      for (int c = own_.begin; c < own_.end; ++c) y[c] *= sigmoid(r[c]);
      add_to_residual(t, y);
    }
    meet();
  }

  void head() {
    float *normed = worker_.scratch;
    for (int t = 0; t < pass_.tokens; ++t) {
      const float *x = row(model_.x, t);
      normalise(x, moments(x, model_.channels), model_.ln_out, own_.begin, own_.end, normed);
      fire(model_, *model_.head, normed, own_.begin, own_.end, pass_.state, t);
    }
    meet();
    list(*model_.head, 0, pass_.first_logits);
    float *logits = pass_.logits - static_cast<int64_t>(pass_.first_logits) * model_.vocab;
    multiply(*model_.head, 0, logits, model_.vocab, pass_.first_logits, true);
    flush();
  }

  Model &model_;
  Worker &worker_;
  const Pass &pass_;
  void (*meet_)(void *);
  void *team_;
  Range own_;
  Job job_{};
  bool waiting_ = false;
};

void run(Model &model, Worker &worker, const Pass &pass, void (*meet)(void *), void *team) {
  Walker(model, worker, pass, meet, team).run();
}

}  // namespace

namespace spikegpt::engine {
namespace SPIKEGPT_ISA {

#define SPIKEGPT_QUOTE(name) #name
#define SPIKEGPT_STRING(name) SPIKEGPT_QUOTE(name)

extern const Walk walk;
const Walk walk = {SPIKEGPT_STRING(SPIKEGPT_ISA), place, run};

}  // namespace SPIKEGPT_ISA
}  // namespace spikegpt::engine
