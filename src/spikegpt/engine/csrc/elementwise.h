// The parts between the products in float32, over a run of channels: plain loops that vectorise. Local to the translation unit.
#pragma once

#include <math.h>

#include "../../ops/csrc/lanes.h"
#include "floats.h"
#include "prefetch.h"

namespace {

using namespace spikegpt::engine;
using Model = FloatModel;
using Value = float;

// What a product's sum of integers is multiplied by; nothing becomes of it then.
inline const float *scale_of(const FloatSite &site, int) { return site.scale; }
inline const uint8_t *steps_of(const FloatSite &site, int group) {
  return site.steps ? site.steps + static_cast<int64_t>(group) * site.padded : nullptr;
}

struct Ending {};
inline Ending ending_of(const FloatSite &) { return {}; }
template <class Vector>
inline Vector ended(Ending, Vector x) {
  return x;
}

// What the loops below read besides values.
inline void ask_norm(const FloatNorm &norm, Channels own) { ask(norm.gain, own), ask(norm.bias, own); }
inline void ask_mixing(const float *weight, Channels own) { ask(weight, own); }
inline void ask_neuron(const FloatSite &site, Channels own) {
  if (site.leak) ask(site.leak, own);
}

struct Moments {
  float mean, scale;
};

// Added in one fixed order whatever the instruction set and the number of threads.
inline float fold(const float *partial) {
  float total = 0.0f;
  for (int lane = 0; lane < 64; ++lane) total += partial[lane];
  return total;
}

inline Moments moments(const float *__restrict x, int count) {
  const int whole = count / 64 * 64;
  float sums[64] = {};
  for (int c = 0; c < whole; c += 64)
    for (int lane = 0; lane < 64; ++lane) sums[lane] += x[c + lane];
  for (int c = whole; c < count; ++c) sums[c - whole] += x[c];
  const float mean = fold(sums) / static_cast<float>(count);
  float squares[64] = {};
  for (int c = 0; c < whole; c += 64)
    for (int lane = 0; lane < 64; ++lane) squares[lane] += (x[c + lane] - mean) * (x[c + lane] - mean);
  for (int c = whole; c < count; ++c) squares[c - whole] += (x[c] - mean) * (x[c] - mean);
  return {mean, 1.0f / sqrtf(fold(squares) / static_cast<float>(count) + 1e-5f)};
}

inline void normalise(const Model &model, const float *__restrict x, const FloatNorm &norm, Channels own,
                      float *__restrict out) {
  const float *__restrict gain = norm.gain, *__restrict bias = norm.bias;
  const Moments of = moments(x, model.channels);
  for (int c = own.begin; c < own.end; ++c) out[c] = (x[c] - of.mean) * of.scale * gain[c] + bias[c];
}

// The embedding of a token through the first norm.
inline void embed(const Model &model, int64_t id, Channels own, float *__restrict scratch, float *__restrict out) {
  const int channels = model.channels;
  const int8_t *__restrict integers = model.embedding + id * channels;
  const float scale = model.embedding_scale[id];
  if (model.spike_embedding)
    for (int c = 0; c < channels; ++c) scratch[c] = integers[c] >= 0 ? 1.0f : 0.0f;
  else
    for (int c = 0; c < channels; ++c) scratch[c] = static_cast<float>(integers[c]) * scale;
  normalise(model, scratch, model.ln0, own, out);
}

// torch.lerp(last, now, weight)
inline void mix_tokens(const float *__restrict last, const float *__restrict now, const float *__restrict weight,
                       Channels own, float *__restrict out) {
  for (int c = own.begin; c < own.end; ++c) {
    const float step = now[c] - last[c];
    out[c] = weight[c] < 0.5f ? last[c] + weight[c] * step : now[c] - step * (1.0f - weight[c]);
  }
}

// ceil(max(size - threshold, 0) / unit), at most `levels`, 0 below `smallest`; see ops.event.
inline float graded(float size, float threshold, float unit, Range range) {
  const float over = size - threshold;
  const float exact = (over > 0.0f ? over : 0.0f) / unit;  // 0 for NaN, which no integer stands for
  const float bounded = range.levels < exact ? range.levels : exact;
  const float to_integer = 8388608.0f;  // 2^23: a float this large has no fraction
  const float nearest = (bounded + to_integer) - to_integer;
  const float sent = nearest < bounded ? nearest + 1.0f : nearest;
  return sent < range.smallest ? 0.0f : sent;
}

template <bool is_signed>
inline float event_of(float h, float threshold, float unit, Range range) {
  const float n = graded(is_signed && h < 0.0f ? -h : h, threshold, unit, range);
  return is_signed && h < 0.0f ? -n : n;
}

template <bool is_signed>
inline void fire_at_once(const FloatSite &site, const float *__restrict x, Channels own, Range range,
                         int8_t *__restrict events) {
  const float threshold = site.threshold, unit = site.unit;
  for (int c = own.begin; c < own.end; ++c)
    events[c] = static_cast<int8_t>(static_cast<int>(event_of<is_signed>(x[c], threshold, unit, range)));
}

template <bool is_signed, bool hard>
inline void fire_membrane(const FloatSite &site, const float *__restrict x, Channels own, Range range,
                          float *__restrict membrane, int8_t *__restrict events) {
  const float *__restrict leak = site.leak;
  const float threshold = site.threshold, unit = site.unit;
  for (int c = own.begin; c < own.end; ++c) {
    const float h = leak[c] * membrane[c] + x[c];
    const float n = event_of<is_signed>(h, threshold, unit, range);
    membrane[c] = hard ? (n == 0.0f ? h : 0.0f) : h - n * unit;
    events[c] = static_cast<int8_t>(static_cast<int>(n));
  }
}

// The neuron in front of `site`, for token `t`: x -> events, through the membrane if it has one.
inline void fire(const Model &model, const FloatSite &site, const float *x, Channels own, float *state, int t) {
  int8_t *events = site.events + static_cast<int64_t>(t) * site.stride;
  if (!site.leak) {
    (site.is_signed ? fire_at_once<true> : fire_at_once<false>)(site, x, own, model.range, events);
    return;
  }
  float *membrane = state + site.membrane;
  if (model.hard)
    (site.is_signed ? fire_membrane<true, true> : fire_membrane<false, true>)(site, x, own, model.range, membrane,
                                                                              events);
  else
    (site.is_signed ? fire_membrane<true, false> : fire_membrane<false, false>)(site, x, own, model.range, membrane,
                                                                                events);
}

// The same of what the token shift makes of two tokens.
inline void fire_mixed(const Model &model, const FloatSite &site, const float *weight, const float *last, const float *now,
                       Channels own, float *scratch, float *state, int t) {
  mix_tokens(last, now, weight, own, scratch);
  fire(model, site, scratch, own, state, t);
}

// The same of relu(x)^2; x is lost.
inline void fire_hidden(const Model &model, const FloatSite &site, float *__restrict x, Channels own, float *state, int t) {
  for (int c = own.begin; c < own.end; ++c) {
    const float positive = x[c] > 0.0f ? x[c] : 0.0f;
    x[c] = positive * positive;
  }
  fire(model, site, x, own, state, t);
}

// One token of ops.wkv, gated: out = sigmoid(r) * wkv(k, v). Of two exponentials one is always exp(0).
inline void wkv(const Model &model, const Model::Mix &mix, const float *__restrict k, const float *__restrict v,
                const float *__restrict r, Channels own, float *__restrict state, float *__restrict out) {
  const int channels = model.channels;
  float *__restrict numerator = state, *__restrict denominator = state + channels;
  float *__restrict exponent = state + 2 * static_cast<int64_t>(channels);
  const float *__restrict decay = mix.decay, *__restrict first = mix.first;
  for (int c = own.begin; c < own.end; ++c) {
    const float ahead = exponent[c] - (first[c] + k[c]);
    const float smaller = exp_negative(ahead < 0.0f ? ahead : -ahead);
    const float past = ahead < 0.0f ? smaller : 1.0f, now = ahead < 0.0f ? 1.0f : smaller;
    out[c] = sigmoid(r[c]) * ((past * numerator[c] + now * v[c]) / (past * denominator[c] + now));
  }
  for (int c = own.begin; c < own.end; ++c) {
    const float faded = exponent[c] + decay[c], ahead = faded - k[c];
    const float smaller = exp_negative(ahead < 0.0f ? ahead : -ahead);
    const float past = ahead < 0.0f ? smaller : 1.0f, now = ahead < 0.0f ? 1.0f : smaller;
    numerator[c] = past * numerator[c] + now * v[c];
    denominator[c] = past * denominator[c] + now;
    exponent[c] = ahead < 0.0f ? k[c] : faded;
  }
}

// x += y.
inline void add(const Model &, const float *__restrict y, Channels own, float *__restrict x) {
  for (int c = own.begin; c < own.end; ++c) x[c] += y[c];
}

// x += y behind the gate sigmoid(r); y is lost.
inline void add_gated(const Model &model, float *__restrict y, const float *__restrict r, Channels own,
                      float *__restrict x) {
  for (int c = own.begin; c < own.end; ++c) y[c] *= sigmoid(r[c]);
  add(model, y, own, x);
}

}  // namespace
