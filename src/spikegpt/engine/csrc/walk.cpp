// One pass of one thread through the model: up to kTokens tokens, from their ids to the logits.
// A part is a range of channels, in whole blocks: their norms, neurons, products and averages are done together, so that
// threads need only wait for each other where all events, or all of the residual, are read.
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
        list.input[count] = static_cast<uint32_t>(input);
        list.value[count] = events[input];
      }
    }
    int sum = 0;
    for (int i = list.begin[group]; i < count; ++i) sum += list.value[i];
    list.sum[group] = sum;
    for (; count % kRows; ++count) {
      list.input[count] = list.input[count - 1];
      list.value[count] = 0;
    }
  }
  list.begin[site.groups] = count;
}

void count(const Site &site, const int8_t *events, const Events &list, int levels) {
  int active = 0, units = 0, saturated = 0;
  for (int i = 0; i < list.begin[site.groups]; ++i) {
    const int size = list.value[i] < 0 ? -list.value[i] : list.value[i];
    active += size != 0;
    units += size;
    saturated += size == levels;
  }
  Counts &counts = *site.counts;
  ++counts.steps;
  counts.active += active;
  counts.units += units;
  counts.saturated += saturated;
  if (counts.fired)
    for (int i = 0; i < site.inputs; ++i) counts.fired[i] += events[i] != 0;
}

struct Range {
  int begin, end;
};

// A thread that comes late runs through the sections without a part in them, perhaps when the next pass has begun: outside
// of `section` nothing of `pass_` is read.
class Walker {
 public:
  Walker(Model &model, Worker &worker, const Pass &pass, const Share &share, uint64_t first)
      : model_(model), worker_(worker), pass_(pass), share_(share), section_(first - 1) {}

  uint64_t run() {
    section([this](int part) { embed(part); });
    for (int i = 0; i < 2 * model_.layers; ++i) {
      const Mix &mix = model_.mixes[i];
      if (mix.is_time)
        time_mix(mix);
      else
        channel_mix(mix);
    }
    section([this](int part) { listen_head(part); });
    section([this](int part) { head(part); });
    return section_;
  }

 private:
  template <class Work>
  void section(const Work &work) {
    ++section_;
    for (int part = -1; (part = share_.next(share_.team, section_, part, worker_.index)) >= 0;) work(part);
  }

  // The channels of a part are the outputs of its panels.
  Range outputs_of(const Site &site, int part) const {
    const auto begin = [&](int of) {
      const int panel = site.panels_of[of];
      const int output = panel < site.panels_of[model_.threads] ? site.panels[panel].begin : site.outputs;
      return output < site.outputs ? output : site.outputs;
    };
    return {begin(part), begin(part + 1)};
  }

  Range channels_of(int part) const { return outputs_of(*model_.mixes->receptance, part); }
  float *row(float *of, int t) const { return of + static_cast<int64_t>(t) * model_.stride; }
  float *hidden(int t) const { return model_.hidden + static_cast<int64_t>(t) * model_.hidden_stride; }

  void embed(int part) {
    const int channels = model_.channels;
    const Range own = channels_of(part);
    float *values = worker_.scratch;
    for (int t = 0; t < pass_.tokens; ++t) {
      const int64_t id = pass_.ids[t];
      const int8_t *__restrict integers = model_.embedding + id * channels;
      const float scale = model_.embedding_scale[id];
      if (model_.spike_embedding)
        for (int c = 0; c < channels; ++c) values[c] = integers[c] >= 0 ? 1.0f : 0.0f;
      else
        for (int c = 0; c < channels; ++c) values[c] = static_cast<float>(integers[c]) * scale;
      normalise(values, moments(values, channels), model_.ln0, own.begin, own.end, row(model_.x, t));
    }
  }

  // normed = norm(x), and what the neurons in front of the given sites make of it, mixed with the token before.
  void listen(const Mix &mix, const Site *const *sites, const float *const *weights, int count, int part) {
    const Range own = channels_of(part);
    if (own.begin == own.end) return;
    float *shift = pass_.state + mix.shift;
    float *mixed = worker_.scratch;
    const float *last = shift;
    for (int t = 0; t < pass_.tokens; ++t) {
      float *normed = row(model_.normed, t);
      const float *x = row(model_.x, t);
      normalise(x, moments(x, model_.channels), mix.norm, own.begin, own.end, normed);
      for (int i = 0; i < count; ++i) {
        mix_tokens(last, normed, weights[i], own.begin, own.end, mixed);
        fire(model_, *sites[i], mixed, own.begin, own.end, pass_.state, t);
      }
      last = normed;
    }
    std::memcpy(shift + own.begin, last + own.begin, sizeof(float) * (own.end - own.begin));
  }

  // Lists the events of every token into a slot, once for all parts that this thread does of the section.
  void list(const Site &site, int slot, int part) {
    const bool listed = worker_.listed[slot] == section_;
    worker_.listed[slot] = section_;
    for (int t = 0; t < pass_.tokens; ++t) {
      const int8_t *events = site.events + static_cast<int64_t>(t) * site.stride;
      const Events &into = worker_.lists[slot][t];
      if (!listed) gather(site, events, model_.dense, into);
      if (part == 0) count(site, events, into, static_cast<int>(model_.levels));
    }
  }

  // Runs the job before this one, now that it is known what to fetch meanwhile.
  void submit(const Job &job) {
    if (waiting_)
      carry_out(&job);
    else
      begin(job);
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

  // A part of a product, for the tokens from `first` on; row t of the outputs begins at out + t * stride.
  // One token goes through whole panels, several through a few blocks at a time that stay in the cache.
  void multiply(const Site &site, int slot, int part, float *out, int64_t stride, int first = 0) {
    const bool together = pass_.tokens - first > 1;
    for (int p = site.panels_of[part]; p < site.panels_of[part + 1]; ++p) {
      const Panel &panel = site.panels[p];
      const int step = together ? narrow_blocks(site.bits) : panel.blocks;
      for (int block = 0; block < panel.blocks; block += step) {
        const int blocks = panel.blocks - block < step ? panel.blocks - block : step;
        for (int t = first; t < pass_.tokens; ++t)
          multiply_blocks(site, panel, block, blocks, worker_.lists[slot][t], out + t * stride, stride);
      }
    }
  }

  // Where the outputs of the last block would pass the end of the row they go by way of the scratch.
  void multiply_blocks(const Site &site, const Panel &panel, int block, int blocks, const Events &events, float *out,
                       int64_t stride) {
    const int width = outputs_per_block(site.bits), at = panel.begin + block * width;
    const bool by_scratch = at + blocks * width > stride;
    for (int group = 0; group < site.groups; ++group) {
      const int from = events.begin[group];
      const bool last = by_scratch && group == site.groups - 1;
      submit({&site, panel.weights + 64 * block, panel.stride, blocks, events.input + from, events.value + from,
              events.begin[group + 1] - from, events.sum[group], site.scale + static_cast<int64_t>(group) * site.padded + at,
              by_scratch ? worker_.scratch : out + at, group > 0, last ? out + at : nullptr, site.outputs - at});
    }
  }

  void add_to_residual(int t, const float *__restrict y, Range own) {
    float *__restrict x = row(model_.x, t);
    for (int c = own.begin; c < own.end; ++c) x[c] += y[c];
  }

  void time_mix(const Mix &mix) {
    const Site *const sites[] = {mix.key, mix.value, mix.receptance};
    const float *const weights[] = {mix.mix_k, mix.mix_v, mix.mix_r};
    float *const outs[] = {model_.k, model_.v, model_.r};
    section([&](int part) { listen(mix, sites, weights, 3, part); });
    section([&](int part) {
      for (int i = 0; i < 3; ++i) {
        list(*sites[i], i, part);
        multiply(*sites[i], i, part, outs[i], model_.stride);
      }
      flush();
      const Range own = channels_of(part);
      for (int t = 0; t < pass_.tokens; ++t) {
        wkv(mix, row(model_.k, t), row(model_.v, t), row(model_.r, t), own.begin, own.end, model_.channels,
            pass_.state + mix.wkv, worker_.scratch);
        fire(model_, *mix.output, worker_.scratch, own.begin, own.end, pass_.state, t);
      }
    });
    section([&](int part) {
      list(*mix.output, 0, part);
      multiply(*mix.output, 0, part, model_.k, model_.stride);
      flush();
      for (int t = 0; t < pass_.tokens; ++t) add_to_residual(t, row(model_.k, t), channels_of(part));
    });
  }

  void channel_mix(const Mix &mix) {
    const Site *const sites[] = {mix.key, mix.receptance};
    const float *const weights[] = {mix.mix_k, mix.mix_r};
    section([&](int part) { listen(mix, sites, weights, 2, part); });
    section([&](int part) {
      list(*mix.key, 0, part);
      multiply(*mix.key, 0, part, model_.hidden, model_.hidden_stride);
      list(*mix.receptance, 1, part);
      multiply(*mix.receptance, 1, part, model_.r, model_.stride);
      flush();
      const Range own = outputs_of(*mix.key, part);
      for (int t = 0; t < pass_.tokens; ++t) {
        float *__restrict values = hidden(t);
        for (int c = own.begin; c < own.end; ++c) {
          const float positive = values[c] > 0.0f ? values[c] : 0.0f;
          values[c] = positive * positive;
        }
        fire(model_, *mix.value, values, own.begin, own.end, pass_.state, t);
      }
    });
    section([&](int part) {
      list(*mix.value, 0, part);
      multiply(*mix.value, 0, part, model_.k, model_.stride);
      flush();
      const Range own = channels_of(part);
      for (int t = 0; t < pass_.tokens; ++t) {
        float *__restrict y = row(model_.k, t);
        const float *__restrict r = row(model_.r, t);
        for (int c = own.begin; c < own.end; ++c) y[c] *= sigmoid(r[c]);
        add_to_residual(t, y, own);
      }
    });
  }

  void listen_head(int part) {
    const Range own = channels_of(part);
    float *normed = worker_.scratch;
    for (int t = 0; t < pass_.tokens; ++t) {
      const float *x = row(model_.x, t);
      normalise(x, moments(x, model_.channels), model_.ln_out, own.begin, own.end, normed);
      fire(model_, *model_.head, normed, own.begin, own.end, pass_.state, t);
    }
  }

  void head(int part) {
    list(*model_.head, 0, part);
    float *logits = pass_.logits - static_cast<int64_t>(pass_.first_logits) * model_.vocab;
    multiply(*model_.head, 0, part, logits, model_.vocab, pass_.first_logits);
    flush();
  }

  Model &model_;
  Worker &worker_;
  const Pass &pass_;
  const Share &share_;
  uint64_t section_;
  Job job_{};
  bool waiting_ = false;
};

uint64_t run(Model &model, Worker &worker, const Pass &pass, const Share &share, uint64_t first) {
  return Walker(model, worker, pass, share, first).run();
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
