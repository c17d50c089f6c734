"""C++ of the recurrences on CPU. Channels are spread over vector lanes and threads; time is a loop with the state in
registers, so every operand is read once and only the result is written."""

COMMON = r"""
#include <math.h>
#include <stdint.h>
#include <string.h>

namespace {

template <typename T> struct Lanes;
template <> struct Lanes<float> {
    static constexpr int count = 16;
    typedef float type __attribute__((vector_size(64)));
};
template <> struct Lanes<double> {
    static constexpr int count = 8;
    typedef double type __attribute__((vector_size(64)));
};
typedef int32_t Bits __attribute__((vector_size(64)));

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <typename T> using Vector = typename Lanes<T>::type;

template <typename T> inline Vector<T> load(const T* p) { Vector<T> v; memcpy(&v, p, sizeof(v)); return v; }
template <typename T> inline void store(T* p, Vector<T> v) { memcpy(p, &v, sizeof(v)); }
template <typename T> inline Vector<T> fill(T x) { return Vector<T>{} + x; }

template <typename T> inline Vector<T> gather(const T* p, int64_t stride, int64_t count) {
    constexpr int lanes = Lanes<T>::count;
    if (stride == 1 && count >= lanes) return load<T>(p);
    if (stride == 0) return fill<T>(*p);
    Vector<T> v{};
    int64_t n = smaller(count, lanes);
    for (int64_t i = 0; i < n; i++) v[i] = p[i * stride];
    return v;
}

template <typename T> inline void scatter(T* p, int64_t stride, int64_t count, Vector<T> v) {
    constexpr int lanes = Lanes<T>::count;
    if (stride == 1 && count >= lanes) { store<T>(p, v); return; }
    int64_t n = smaller(count, lanes);
    for (int64_t i = 0; i < n; i++) p[i * stride] = v[i];
}
}  // namespace
"""

LINEAR_RECURRENCE = r"""
namespace {
// Strides of one operand, in elements: outer, time, inner.
struct Strides { int64_t outer, time, inner; };

template <typename T>
void recurrence(const T* decay, const T* input, const T* initial, T* out, int64_t outer, int64_t length, int64_t inner,
                Strides d, Strides x, Strides o, int64_t reverse, int64_t threads) {
    constexpr int lanes = Lanes<T>::count;
    constexpr int width = 4;  // vectors carried together: enough independent chains to hide the latency of one
    int64_t block = lanes * width;
    int64_t blocks = (inner + block - 1) / block;
    #pragma omp parallel for collapse(2) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < outer; i++)
        for (int64_t j = 0; j < blocks; j++) {
            int64_t first = j * block, count = smaller(block, inner - first);
            int used = int((count + lanes - 1) / lanes);
            Vector<T> h[width];
            for (int k = 0; k < used; k++)
                h[k] = initial ? gather<T>(initial + i * inner + first + k * lanes, 1, count - k * lanes) : Vector<T>{};
            const T* dp = decay + i * d.outer + first * d.inner;
            const T* xp = input + i * x.outer + first * x.inner;
            T* op = out + i * o.outer + first * o.inner;
            bool full = count == block && d.inner == 1 && x.inner == 1 && o.inner == 1;
            for (int64_t s = 0; s < length; s++) {
                int64_t t = reverse ? length - 1 - s : s;
                const T* dt = dp + t * d.time;
                const T* xt = xp + t * x.time;
                T* ot = op + t * o.time;
                // Without an initial state the first one is the input itself, whatever the decay is (infinite, say).
                bool start = s == 0 && !initial;
                if (full) {
                    #pragma GCC unroll 4
                    for (int k = 0; k < width; k++) {
                        Vector<T> v = load<T>(xt + k * lanes);
                        h[k] = start ? v : load<T>(dt + k * lanes) * h[k] + v;
                        store<T>(ot + k * lanes, h[k]);
                    }
                } else {
                    for (int k = 0; k < used; k++) {
                        int64_t left = count - k * lanes, at = k * lanes;
                        Vector<T> v = gather<T>(xt + at * x.inner, x.inner, left);
                        h[k] = start ? v : gather<T>(dt + at * d.inner, d.inner, left) * h[k] + v;
                        scatter<T>(ot + at * o.inner, o.inner, left, h[k]);
                    }
                }
            }
        }
}
}  // namespace

extern "C" void linear_recurrence(const TYPE* decay, const TYPE* input, const TYPE* initial, TYPE* out,
        int64_t outer, int64_t length, int64_t inner, int64_t d0, int64_t d1, int64_t d2, int64_t x0, int64_t x1,
        int64_t x2, int64_t o0, int64_t o1, int64_t o2, int64_t reverse, int64_t threads) {
    recurrence<TYPE>(decay, input, initial, out, outer, length, inner, {d0, d1, d2}, {x0, x1, x2}, {o0, o1, o2},
                     reverse, threads);
}
"""

SELECTIVE_SCAN = r"""
namespace {
// exp with the argument reduced by multiples of ln 2 and a polynomial of degree 6, good to about two units in the last
// place. Results below 2.5e-38 are zero, those above the largest float are infinite, NaN stays NaN.
inline Vector<float> exponential(Vector<float> x) {
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    Vector<float> a = x > 88.72283f ? fill(88.72283f) : x;
    a = a < -86.6f ? fill(-86.6f) : a;
    Vector<float> shifted = a * 1.44269504088896341f + magic;
    Vector<float> n = shifted - magic;
    Vector<float> r = a - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    Vector<float> p = fill(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    Bits bits;
    memcpy(&bits, &shifted, sizeof(bits));
    bits = (bits - 0x4B400000 + 126) << 23;  // 2^(n - 1), so that n = 128 still has an exponent
    Vector<float> scale;
    memcpy(&scale, &bits, sizeof(scale));
    Vector<float> y = p * scale * 2.0f;
    y = x > 88.72283f ? fill(__builtin_inff()) : y;
    return x < -86.6f ? Vector<float>{} : y;
}

inline Vector<double> exponential(Vector<double> x) {
    Vector<double> y;
    for (int i = 0; i < 8; i++) y[i] = exp(x[i]);
    return y;
}

struct First { static constexpr bool value = true; };
struct Later { static constexpr bool value = false; };

// One block of lanes (channels) and K states of each, over all of time. rates: [K][lanes].
template <typename T, int K>
inline void selective(const T* delta, const T* input, const T* expand, const T* read, const T* rates, T* out,
                      int64_t length, int64_t channels, int64_t states, int64_t count, bool add) {
    constexpr int lanes = Lanes<T>::count;
    Vector<T> h[K], a[K];
    for (int k = 0; k < K; k++) { h[k] = Vector<T>{}; a[k] = load<T>(rates + k * lanes); }
    auto step = [&](int64_t t, auto start) {
        Vector<T> dt = gather<T>(delta + t * channels, 1, count);
        Vector<T> xt = gather<T>(input + t * channels, 1, count);
        const T* bt = expand + t * states;
        const T* ct = read + t * states;
        Vector<T> y = add ? gather<T>(out + t * channels, 1, count) : Vector<T>{};
        #pragma GCC unroll 16
        for (int k = 0; k < K; k++) {
            // The first state is its input, even where the decay is infinite.
            if constexpr (decltype(start)::value) h[k] = xt * bt[k];
            else h[k] = exponential(dt * a[k]) * h[k] + xt * bt[k];
            y += h[k] * ct[k];
        }
        scatter<T>(out + t * channels, 1, count, y);
    };
    if (length > 0) step(0, First{});
    for (int64_t t = 1; t < length; t++) step(t, Later{});
}

template <typename T>
void scan_selectively(const T* delta, const T* rate, const T* input, const T* expand, const T* read, T* out,
                    int64_t batch, int64_t length, int64_t channels, int64_t states, int64_t threads) {
    constexpr int lanes = Lanes<T>::count;
    int64_t blocks = (channels + lanes - 1) / lanes;
    #pragma omp parallel for collapse(2) num_threads(threads) if (threads > 1)
    for (int64_t b = 0; b < batch; b++)
        for (int64_t j = 0; j < blocks; j++) {
            int64_t first = j * lanes, count = smaller(lanes, channels - first);
            int64_t at = b * length * channels + first;
            const T* dp = delta + at;
            const T* xp = input + at;
            T* op = out + at;
            int64_t n = 0;
            while (n < states) {
                T rates[8 * lanes] = {};
                int64_t left = states - n;
                int used = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
                for (int k = 0; k < used; k++)
                    for (int64_t i = 0; i < count; i++) rates[k * lanes + i] = rate[(first + i) * states + n + k];
                const T* bp = expand + b * length * states + n;
                const T* cp = read + b * length * states + n;
                bool add = n > 0;
                if (used == 8) selective<T, 8>(dp, xp, bp, cp, rates, op, length, channels, states, count, add);
                else if (used == 4) selective<T, 4>(dp, xp, bp, cp, rates, op, length, channels, states, count, add);
                else if (used == 2) selective<T, 2>(dp, xp, bp, cp, rates, op, length, channels, states, count, add);
                else selective<T, 1>(dp, xp, bp, cp, rates, op, length, channels, states, count, add);
                n += used;
            }
        }
}
}  // namespace

extern "C" void selective_scan(const TYPE* delta, const TYPE* rate, const TYPE* input, const TYPE* expand,
        const TYPE* read, TYPE* out, int64_t batch, int64_t length, int64_t channels, int64_t states,
        int64_t threads) {
    scan_selectively<TYPE>(delta, rate, input, expand, read, out, batch, length, channels, states, threads);
}
"""

SOURCES = {"linear_recurrence": LINEAR_RECURRENCE, "selective_scan": SELECTIVE_SCAN}


def source(name: str, element: str) -> str:
    """One kernel for one element type (``float`` or ``double``): a file is built when it is first needed."""
    return f"{COMMON}{SOURCES[name]}".replace("TYPE", element)
