// What a pack needs around its matrix products, each for one thread of a CPU: attention inside each sequence, norms, and
// the way to eight bits and back.
//
// Attention takes rows of queries a few at a time: their products with all keys, softmax, then their products with all
// values. Both are the same small matrix product, a row of A broadcast against vectors of B, whose accumulators stay in
// registers. Sequences are short enough for the keys and values of a head to stay in the core's cache.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kColumns = 4;
#elif defined(__AVX__)
constexpr int kLanes = 8, kColumns = 2;
#else
constexpr int kLanes = 4, kColumns = 4;
#endif
constexpr int kRows = 6;  // with kColumns vectors of each row, what the registers hold

typedef float Vector __attribute__((vector_size(kLanes * 4)));
typedef int32_t Integers __attribute__((vector_size(kLanes * 4)));

Vector load(const float* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

void store(float* to, Vector vector) { std::memcpy(to, &vector, sizeof vector); }

Vector fill(float number) { return Vector{} + number; }

Vector larger(Vector a, Vector b) { return a > b ? a : b; }

// Lane i of the result is lane choose(i) of a, or of b where that is kLanes or more.
template <class Choose>
Vector shuffle(Vector a, Vector b, Choose choose) {
#if defined(__clang__)
  return [&]<int... lane>(std::integer_sequence<int, lane...>) {
    return __builtin_shufflevector(a, b, Choose{}(lane)...);
  }(std::make_integer_sequence<int, kLanes>{});
#else
  Integers lanes;
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = choose(lane);
  return __builtin_shuffle(a, b, lanes);
#endif
}

template <class Combine>
float reduce(Vector vector, Combine combine) {
  vector = combine(vector, shuffle(vector, vector, [](int lane) { return lane ^ 1; }));
  vector = combine(vector, shuffle(vector, vector, [](int lane) { return lane ^ 2; }));
  if constexpr (kLanes > 4) vector = combine(vector, shuffle(vector, vector, [](int lane) { return lane ^ (4 % kLanes); }));
  if constexpr (kLanes > 8) vector = combine(vector, shuffle(vector, vector, [](int lane) { return lane ^ (8 % kLanes); }));
  return vector[0];
}

template <int step>
void exchange(Vector* rows) {
  for (int row = 0; row < kLanes; ++row) {
    if (row & step) continue;
    const Vector a = rows[row], b = rows[row + step];
    rows[row] = shuffle(a, b, [](int lane) { return lane & step ? kLanes + (lane ^ step) : lane; });
    rows[row + step] = shuffle(a, b, [](int lane) { return lane & step ? kLanes + lane : lane ^ step; });
  }
  if constexpr (2 * step < kLanes) exchange<2 * step>(rows);
}

// to[width, height] = from[height, width] transposed, elements of four bytes; padded with zeros to whole vectors of height
template <class Packed>
void transpose(const Packed* from, int64_t from_stride, int64_t height, int64_t width, Packed* to, int64_t to_stride) {
  for (int64_t top = 0; top < height; top += kLanes)
    for (int64_t left = 0; left < width; left += kLanes) {
      const int rows = static_cast<int>(std::min<int64_t>(kLanes, height - top));
      const int columns = static_cast<int>(std::min<int64_t>(kLanes, width - left));
      Vector tile[kLanes] = {};
      for (int row = 0; row < rows; ++row) {
        const Packed* line = from + (top + row) * from_stride + left;
        if (columns == kLanes)
          std::memcpy(&tile[row], line, sizeof(Vector));
        else
          std::memcpy(&tile[row], line, columns * sizeof(Packed));
      }
      exchange<1>(tile);
      for (int column = 0; column < columns; ++column)
        std::memcpy(to + (left + column) * to_stride + top, &tile[column], sizeof(Vector));
    }
}

// 2 ** x for x <= 0, with a relative error of 2e-7, and at least 2 ** -126
Vector power_of_two(Vector x) {
  x = larger(x, fill(-126.0f));
  const Vector shift = fill(12582912.0f);  // 1.5 * 2 ** 23: adding it rounds to an integer
  const Vector shifted = x + shift;
  const Vector rest = x - (shifted - shift);  // in [-0.5, 0.5]
  // Taylor's series of exp(rest * ln 2)
  Vector power = fill(1.5403530e-4f);
  power = power * rest + 1.3333558e-3f;
  power = power * rest + 9.6181291e-3f;
  power = power * rest + 5.5504109e-2f;
  power = power * rest + 2.4022651e-1f;
  power = power * rest + 6.9314718e-1f;
  power = power * rest + 1.0f;
  const Integers exponent = reinterpret_cast<Integers>(shifted) << 23;
  return reinterpret_cast<Vector>(reinterpret_cast<Integers>(power) + exponent);
}

// What a product multiplies: the elements of A and B are four bytes, one float or two bfloat16 that are neighbours in
// depth.
struct Float32 {
  using Element = float;
  using Packed = float;
  static constexpr int kDepth = 1;
  static Vector multiply(Vector sum, Packed a, const Packed* b) { return sum + a * load(b); }
  static Vector widen(const Element* from) { return load(from); }
  static void narrow(Vector from, Element* to) { store(to, from); }
  static void pack_pair(const Element* first, const Element*, int64_t width, Packed* to) {
    std::copy(first, first + width, to);
  }
};

#if defined(__AVX512BF16__)
struct Bfloat16 {
  using Element = uint16_t;
  using Packed = uint32_t;
  static constexpr int kDepth = 2;
  static Vector multiply(Vector sum, Packed a, const Packed* b) {
    return reinterpret_cast<Vector>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum),
                                                     reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(a))),
                                                     reinterpret_cast<__m512bh>(_mm512_loadu_si512(b))));
  }
  static Vector widen(const Element* from) {
    __m256i narrow;
    std::memcpy(&narrow, from, sizeof narrow);
    return reinterpret_cast<Vector>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
  }
  static void narrow(Vector from, Element* to) {
    const __m256bh narrow = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(from));
    std::memcpy(to, &narrow, sizeof narrow);
  }
  static void pack_pair(const Element* first, const Element* second, int64_t width, Packed* to) {
    if (second)
      for (int64_t d = 0; d < width; ++d) to[d] = first[d] | static_cast<Packed>(second[d]) << 16;
    else
      for (int64_t d = 0; d < width; ++d) to[d] = first[d];
  }
};
#endif

// out[rows, columns * kLanes] = A[rows, depth] @ B[depth, ...]
template <class T, int rows, int columns>
void multiply_block(const typename T::Packed* a, int64_t a_stride, const typename T::Packed* b, int64_t b_stride, int64_t depth,
                    float* out, int64_t out_stride) {
  Vector sums[rows][columns] = {};
  for (int64_t k = 0; k < depth; ++k)
    for (int row = 0; row < rows; ++row)
      for (int column = 0; column < columns; ++column)
        sums[row][column] =
            T::multiply(sums[row][column], a[row * a_stride + k], b + k * b_stride + column * kLanes);
  for (int row = 0; row < rows; ++row)
    for (int column = 0; column < columns; ++column)
      store(out + row * out_stride + column * kLanes, sums[row][column]);
}

template <class T, int rows>
void multiply_rows(const typename T::Packed* a, int64_t a_stride, const typename T::Packed* b, int64_t b_stride, int64_t depth,
                   float* out, int64_t out_stride, int64_t width) {
  int64_t column = 0;
  for (; column + kColumns * kLanes <= width; column += kColumns * kLanes)
    multiply_block<T, rows, kColumns>(a, a_stride, b + column, b_stride, depth, out + column, out_stride);
  for (; column < width; column += kLanes)
    multiply_block<T, rows, 1>(a, a_stride, b + column, b_stride, depth, out + column, out_stride);
}

// width is a multiple of kLanes
template <class T>
void multiply(int rows, const typename T::Packed* a, int64_t a_stride, const typename T::Packed* b, int64_t b_stride,
              int64_t depth, float* out, int64_t out_stride, int64_t width) {
  using Function = decltype(&multiply_rows<T, 1>);
  static constexpr Function kFunctions[kRows] = {multiply_rows<T, 1>, multiply_rows<T, 2>, multiply_rows<T, 3>,
                                                 multiply_rows<T, 4>, multiply_rows<T, 5>, multiply_rows<T, 6>};
  kFunctions[rows - 1](a, a_stride, b, b_stride, depth, out, out_stride, width);
}

int64_t round_up(int64_t number, int64_t step) { return (number + step - 1) / step * step; }

struct Shape {
  const int32_t* query_offsets;  // [sequences + 1]
  const int32_t* key_offsets;    // [sequences + 1]
  const uint8_t* seen;           // [tokens], or null: all
  int64_t sequences, heads, key_heads, dim, value_dim;
  int64_t window;                                                                 // seen is what is less far away; 0: all
  int64_t query_strides[2], key_strides[2], value_strides[2], out_strides[2];  // between tokens and between heads
  int32_t causal;
  float scale;  // of the products
};

// The numerators of softmax of a row of products over the keys [low, high), in the type of a factor; returns their sum.
template <class T>
float exponentiate(float* row, int64_t low, int64_t high, int64_t width, const uint8_t* seen, float scale,
                   typename T::Element* to) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  Integers lanes;
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = lane;
  for (int64_t key = 0; key < low; key += kLanes)
    store(row + key, lanes >= static_cast<int>(low - key) ? load(row + key) : fill(-kInfinity));
  for (int64_t key = high / kLanes * kLanes; key < width; key += kLanes)
    store(row + key, lanes < static_cast<int>(high - key) ? load(row + key) : fill(-kInfinity));
  if (seen)
    for (int64_t key = low; key < high; ++key)
      if (!seen[key]) row[key] = -kInfinity;
  Vector largest = load(row);
  for (int64_t key = kLanes; key < width; key += kLanes) largest = larger(largest, load(row + key));
  const float maximum = reduce(largest, [](Vector a, Vector b) { return larger(a, b); });
  Vector sums = {};
  const Vector subtracted = fill(-maximum * scale);
  for (int64_t key = 0; key < width; key += kLanes) {
    const Vector power = power_of_two(load(row + key) * scale + subtracted);
    sums += power;
    T::narrow(power, to + key);
  }
  return reduce(sums, [](Vector a, Vector b) { return a + b; });
}

template <class T>
void attend(const typename T::Element* query, const typename T::Element* key, const typename T::Element* value,
            typename T::Element* out, const Shape& shape) {
  using Element = typename T::Element;
  using Packed = typename T::Packed;
  const int64_t depth = shape.dim / T::kDepth, groups = shape.heads / shape.key_heads;
  const int64_t value_width = round_up(shape.value_dim, kLanes);
  const float scale = shape.scale * 1.44269504f;  // log2(e)
  int64_t longest = 0;
  for (int64_t i = 0; i < shape.sequences; ++i)
    longest = std::max<int64_t>(longest, shape.key_offsets[i + 1] - shape.key_offsets[i]);
  const int64_t capacity = round_up(longest, kLanes);
  thread_local std::vector<Packed> keys, values;
  thread_local std::vector<float> products, outputs;
  thread_local std::vector<Element> weights;
  keys.resize(depth * capacity);
  values.resize((capacity / T::kDepth) * value_width);
  products.resize(kRows * capacity);
  weights.resize(kRows * capacity);
  outputs.resize(kRows * value_width);

  for (int64_t i = 0; i < shape.sequences; ++i) {
    const int64_t first = shape.key_offsets[i], length = shape.key_offsets[i + 1] - first;
    const int64_t first_query = shape.query_offsets[i], queries = shape.query_offsets[i + 1] - first_query;
    const int64_t behind = length - queries;  // the last query stands at the last key
    const int64_t width = round_up(length, kLanes);
    const uint8_t* seen = shape.seen ? shape.seen + first : nullptr;
    for (int64_t key_head = 0; key_head < shape.key_heads; ++key_head) {
      const Element* head_keys = key + first * shape.key_strides[0] + key_head * shape.key_strides[1];
      transpose(reinterpret_cast<const Packed*>(head_keys), shape.key_strides[0] / T::kDepth, length, depth, keys.data(),
                width);
      const Element* head_values = value + first * shape.value_strides[0] + key_head * shape.value_strides[1];
      for (int64_t j = 0; j < width; j += T::kDepth) {
        const Element* line = head_values + j * shape.value_strides[0];
        Packed* to = &values[j / T::kDepth * value_width];
        if (j < length)
          T::pack_pair(line, j + 1 < length ? line + shape.value_strides[0] : nullptr, shape.value_dim, to);
        else
          std::fill(to, to + value_width, Packed{});
      }
      for (int64_t head = key_head * groups; head < (key_head + 1) * groups; ++head) {
        const Element* head_queries = query + first_query * shape.query_strides[0] + head * shape.query_strides[1];
        Element* head_out = out + first_query * shape.out_strides[0] + head * shape.out_strides[1];
        for (int64_t row = 0; row < queries; row += kRows) {
          const int rows = static_cast<int>(std::min<int64_t>(kRows, queries - row));
          const int64_t place = behind + row;
          // the keys that any of these rows sees
          const int64_t from = shape.window ? std::max<int64_t>(0, place - shape.window + 1) / kLanes * kLanes : 0;
          int64_t to = shape.causal ? place + rows : shape.window ? std::min(length, place + rows - 1 + shape.window) : length;
          to = round_up(to, kLanes);
          const int64_t seen_width = to - from;
          const Packed* a = reinterpret_cast<const Packed*>(head_queries + row * shape.query_strides[0]);
          multiply<T>(rows, a, shape.query_strides[0] / T::kDepth, &keys[from], width, depth, products.data(), capacity,
                      seen_width);
          float sums[kRows];
          for (int r = 0; r < rows; ++r) {
            const int64_t low = shape.window ? std::max<int64_t>(from, place + r - shape.window + 1) : from;
            int64_t high = shape.causal ? place + r + 1 : shape.window ? place + r + shape.window : length;
            high = std::min(high, length);
            float* line = &products[r * capacity];
            sums[r] = exponentiate<T>(line, low - from, high - from, seen_width, seen ? seen + from : nullptr, scale,
                                      &weights[r * capacity]);
          }
          multiply<T>(rows, reinterpret_cast<const Packed*>(weights.data()), capacity / T::kDepth,
                      &values[from / T::kDepth * value_width], value_width, seen_width / T::kDepth, outputs.data(),
                      value_width, value_width);
          for (int r = 0; r < rows; ++r) {
            float* line = &outputs[r * value_width];
            const float factor = 1.0f / sums[r];
            Element narrow[1024];
            for (int64_t d = 0; d < value_width; d += kLanes) T::narrow(load(line + d) * factor, narrow + d);
            std::memcpy(head_out + (row + r) * shape.out_strides[0], narrow, shape.value_dim * sizeof(Element));
          }
        }
      }
    }
  }
}

// Rows of `states`, plus those of `residual` unless it is null, divided by their spread: LayerNorm, or RMSNorm if the
// mean stays. `width` is a multiple of kLanes.
template <class T>
void normalize(const typename T::Element* states, const typename T::Element* residual, const float* weight,
               const float* bias, typename T::Element* out, int64_t rows, int64_t width, int32_t centered,
               float epsilon) {
  thread_local std::vector<float> buffer;
  buffer.resize(width);
  float* line = buffer.data();
  const auto sum = [](Vector a, Vector b) { return a + b; };
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t start = row * width;
    Vector sums = {}, squares = {};
    for (int64_t column = 0; column < width; column += kLanes) {
      Vector number = T::widen(states + start + column);
      if (residual) number += T::widen(residual + start + column);
      sums += number;
      store(line + column, number);
    }
    const float mean = centered ? reduce(sums, sum) / width : 0.0f;
    for (int64_t column = 0; column < width; column += kLanes) {
      const Vector number = load(line + column) - mean;
      squares += number * number;
    }
    const float factor = 1.0f / std::sqrt(reduce(squares, sum) / width + epsilon);
    for (int64_t column = 0; column < width; column += kLanes) {
      Vector number = (load(line + column) - mean) * factor * load(weight + column);
      if (bias) number += load(bias + column);
      T::narrow(number, out + start + column);
    }
  }
}

constexpr float kLeast = 1e-30f;  // a row without a larger number is all zeros: 127 / size must not overflow

Vector magnitude(Vector x) { return larger(x, -x); }

// Rows as eight bits, each with a scale of its own: out * scales is about `states`, and a row's scale is not a number if
// one of its numbers is not finite. `width` is a multiple of kLanes.
template <class T>
void quantize_rows(const typename T::Element* states, int8_t* out, float* scales, int64_t rows, int64_t width) {
  const Vector shift = fill(12582912.0f);  // 1.5 * 2 ** 23: adding it rounds to an integer, in the lowest bits
  thread_local std::vector<int32_t> buffer;
  buffer.resize(width);
  int32_t* __restrict numbers = buffer.data();
  for (int64_t row = 0; row < rows; ++row) {
    const typename T::Element* line = states + row * width;
    Integers largest = {};  // bits of positive numbers are in the order of the numbers, and what is no number comes last
    for (int64_t column = 0; column < width; column += kLanes) {
      const Integers bits = reinterpret_cast<Integers>(T::widen(line + column)) & 0x7fffffff;
      largest = bits > largest ? bits : largest;
    }
    int32_t most = 0;
    for (int lane = 0; lane < kLanes; ++lane) most = std::max(most, largest[lane]);
    float size;
    std::memcpy(&size, &most, sizeof size);
    const Vector factor = fill(size > kLeast ? 127.0f / size : 0.0f);
    scales[row] = size / 127.0f + (size - size);
    for (int64_t column = 0; column < width; column += kLanes) {
      const Vector shifted = T::widen(line + column) * factor + shift;
      const Integers bits = reinterpret_cast<Integers>(shifted);
      std::memcpy(numbers + column, &bits, sizeof bits);
    }
    int8_t* __restrict bytes = out + row * width;
    for (int64_t column = 0; column < width; ++column) bytes[column] = static_cast<int8_t>(numbers[column]);
  }
}

// 1 / (1 + exp(-x))
Vector sigmoid(Vector x) {
  const Vector power = power_of_two(-magnitude(x) * 1.44269504f);
  const Vector small = power / (1.0f + power);
  return x < 0.0f ? small : 1.0f - small;
}

struct Same {
  static Vector apply(Vector x) { return x; }
};

struct Gelu {
  // erf by formula 7.1.26 of Abramowitz and Stegun, to 1.5e-7
  static Vector apply(Vector x) {
    const Vector z = magnitude(x) * 0.70710678f;
    const Vector t = 1.0f / (1.0f + 0.3275911f * z);
    Vector sum = fill(1.061405429f);
    sum = sum * t - 1.453152027f;
    sum = sum * t + 1.421413741f;
    sum = sum * t - 0.284496736f;
    sum = sum * t + 0.254829592f;
    const Vector tail = 0.5f * sum * t * power_of_two(z * z * -1.44269504f);
    return x * (x < 0.0f ? tail : 1.0f - tail);
  }
};

struct TanhGelu {
  static Vector apply(Vector x) { return x * sigmoid(1.59576912f * (x + 0.044715f * x * x * x)); }
};

struct Silu {
  static Vector apply(Vector x) { return x * sigmoid(x); }
};

struct Relu {
  static Vector apply(Vector x) { return x < 0.0f ? fill(0.0f) : x; }  // what is no number stays so
};

// Rows of sums of products of eight bits as numbers, with a bias unless it is null, and an activation. `width` is a
// multiple of kLanes.
template <class T, class Activation>
void rescale(const int32_t* sums, const float* row_scales, const float* scales, const float* bias,
             typename T::Element* out, int64_t rows, int64_t width) {
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t column = 0; column < width; column += kLanes) {
      Integers sum;
      std::memcpy(&sum, sums + row * width + column, sizeof sum);
      Vector number = __builtin_convertvector(sum, Vector) * (load(scales + column) * row_scales[row]);
      if (bias) number += load(bias + column);
      T::narrow(Activation::apply(number), out + row * width + column);
    }
}

template <class T>
void rescale_rows(const int32_t* sums, const float* row_scales, const float* scales, const float* bias,
                  typename T::Element* out, int64_t rows, int64_t width, int32_t activation) {
  using Function = decltype(&rescale<T, Same>);
  static constexpr Function kFunctions[] = {rescale<T, Same>, rescale<T, Gelu>, rescale<T, TanhGelu>, rescale<T, Silu>,
                                            rescale<T, Relu>};
  kFunctions[activation](sums, row_scales, scales, bias, out, rows, width);
}

}  // namespace

extern "C" {

void attend_float32(const float* query, const float* key, const float* value, float* out, const Shape* shape) {
  attend<Float32>(query, key, value, out, *shape);
}

void normalize_float32(const float* states, const float* residual, const float* weight, const float* bias, float* out,
                       int64_t rows, int64_t width, int32_t centered, float epsilon) {
  normalize<Float32>(states, residual, weight, bias, out, rows, width, centered, epsilon);
}

void quantize_rows_float32(const float* states, int8_t* out, float* scales, int64_t rows, int64_t width) {
  quantize_rows<Float32>(states, out, scales, rows, width);
}

void rescale_rows_float32(const int32_t* sums, const float* row_scales, const float* scales, const float* bias,
                          float* out, int64_t rows, int64_t width, int32_t activation) {
  rescale_rows<Float32>(sums, row_scales, scales, bias, out, rows, width, activation);
}

#if defined(__AVX512BF16__)
void quantize_rows_bfloat16(const uint16_t* states, int8_t* out, float* scales, int64_t rows, int64_t width) {
  quantize_rows<Bfloat16>(states, out, scales, rows, width);
}

void rescale_rows_bfloat16(const int32_t* sums, const float* row_scales, const float* scales, const float* bias,
                           uint16_t* out, int64_t rows, int64_t width, int32_t activation) {
  rescale_rows<Bfloat16>(sums, row_scales, scales, bias, out, rows, width, activation);
}

void normalize_bfloat16(const uint16_t* states, const uint16_t* residual, const float* weight, const float* bias,
                        uint16_t* out, int64_t rows, int64_t width, int32_t centered, float epsilon) {
  normalize<Bfloat16>(states, residual, weight, bias, out, rows, width, centered, epsilon);
}

void attend_bfloat16(const uint16_t* query, const uint16_t* key, const uint16_t* value, uint16_t* out,
                     const Shape* shape) {
  attend<Bfloat16>(query, key, value, out, *shape);
}
#endif
}
