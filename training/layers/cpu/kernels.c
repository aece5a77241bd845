// Operations that PyTorch does slowly on CPU. Numbers are fp32, or bf16 if `half` is set; sums are fp32. Matrices are
// row-major, and contiguous unless a row stride is passed.
//
// The first part is for decoding: it multiplies a few rows with matrices that are read once, in memory order. Each row
// of a matrix W [n, k] is multiplied with all rows of x [m, k] while it is in registers. The second part is for
// training: SwiGLU, GELU and the loss's softmax, each in one pass.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { LANES = 16, TOGETHER = 8 };
typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t bits __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2)));

#define INLINE static inline __attribute__((always_inline))
// For matrices with fewer elements than this, threads cost more than they save.
#define ENOUGH (1 << 15)

INLINE float widened(uint16_t x) {
    uint32_t wide = (uint32_t)x << 16;
    float out;
    memcpy(&out, &wide, sizeof out);
    return out;
}

INLINE uint16_t narrowed(float x) {
    uint32_t wide;
    memcpy(&wide, &x, sizeof wide);
    if ((wide & 0x7fffffff) > 0x7f800000) return (uint16_t)(wide >> 16) | 64;  // NaN stays NaN
    return (uint16_t)((wide + 0x7fff + ((wide >> 16) & 1)) >> 16);  // round to nearest, ties to even
}

INLINE float get(const void *from, int64_t i, int half) {
    return half ? widened(((const uint16_t *)from)[i]) : ((const float *)from)[i];
}

INLINE void put(void *to, int64_t i, float x, int half) {
    if (half) ((uint16_t *)to)[i] = narrowed(x);
    else ((float *)to)[i] = x;
}

INLINE lanes get_lanes(const void *from, int64_t i, int half) {
    if (!half) return *(const lanes *)((const float *)from + i);
    return (lanes)(__builtin_convertvector(*(const halves *)((const uint16_t *)from + i), bits) << 16);
}

INLINE const void *row_of(const void *matrix, int64_t row, int64_t width, int half) {
    return (const char *)matrix + row * width * (half ? 2 : 4);
}

// Returns the sum of all lanes by repeated halving: a sequential sum would wait for each addition.
INLINE float total_of(lanes x) {
    typedef float eight __attribute__((vector_size(32), aligned(4)));
    typedef float four __attribute__((vector_size(16), aligned(4)));
    eight both = *(eight *)&x + *((eight *)&x + 1);
    four quarter = *(four *)&both + *((four *)&both + 1);
    return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
}

// out[r * stride] = w . x[r] for m <= TOGETHER rows of x [m, k] in fp32.
INLINE void dots(const float *x, const void *w, float *out, int64_t m, int64_t k, int64_t stride, int half) {
    lanes sum[TOGETHER][2];
    float rest[TOGETHER];
    int64_t i = 0;
    for (int64_t r = 0; r < m; r++) sum[r][0] = sum[r][1] = (lanes){0};
    for (; i + 2 * LANES <= k; i += 2 * LANES) {
        lanes first = get_lanes(w, i, half), second = get_lanes(w, i + LANES, half);
        for (int64_t r = 0; r < m; r++) {
            sum[r][0] += first * get_lanes(x + r * k, i, 0);
            sum[r][1] += second * get_lanes(x + r * k, i + LANES, 0);
        }
    }
    for (; i + LANES <= k; i += LANES) {
        lanes first = get_lanes(w, i, half);
        for (int64_t r = 0; r < m; r++) sum[r][0] += first * get_lanes(x + r * k, i, 0);
    }
    for (int64_t r = 0; r < m; r++) {
        rest[r] = total_of(sum[r][0] + sum[r][1]);
    }
    for (; i < k; i++) {
        float number = get(w, i, half);
        for (int64_t r = 0; r < m; r++) rest[r] += number * x[r * k + i];
    }
    for (int64_t r = 0; r < m; r++) out[r * stride] = rest[r];
}

// The same for any number of rows. Each count below is compiled separately, with its sums in registers.
INLINE void all_dots(const float *x, const void *w, float *out, int64_t m, int64_t k, int64_t stride, int half) {
    int64_t r = 0;
    for (; r + 8 <= m; r += 8) dots(x + r * k, w, out + r * stride, 8, k, stride, half);
    for (; r + 4 <= m; r += 4) dots(x + r * k, w, out + r * stride, 4, k, stride, half);
    for (; r + 2 <= m; r += 2) dots(x + r * k, w, out + r * stride, 2, k, stride, half);
    for (; r < m; r++) dots(x + r * k, w, out + r * stride, 1, k, stride, half);
}

INLINE void product(const float *x, const void *w, const void *bias, void *y, int64_t m, int64_t n, int64_t k, int half) {
#pragma omp parallel if (n * k >= ENOUGH)
    {
        float column[m];
#pragma omp for schedule(static)
        for (int64_t j = 0; j < n; j++) {
            all_dots(x, row_of(w, j, k, half), column, m, k, 1, half);
            float more = bias ? get(bias, j, half) : 0;
            for (int64_t r = 0; r < m; r++) put(y, r * n + j, column[r] + more, half);
        }
    }
}

enum { STREAMS = 4 };

// The same for a single row of x. The matrix is read as several concurrent streams.
INLINE void product_of_one(const float *x, const void *w, const void *bias, void *y, int64_t n, int64_t k, int half) {
    int64_t apart = (n + STREAMS - 1) / STREAMS;
#pragma omp parallel for schedule(static) if (n * k >= ENOUGH)
    for (int64_t j = 0; j < apart; j++) {
        const void *rows[STREAMS];
        lanes sum[STREAMS] = {{0}};
        int64_t i = 0;
        for (int64_t r = 0; r < STREAMS; r++) rows[r] = row_of(w, j + r * apart < n ? j + r * apart : j, k, half);
        for (; i + LANES <= k; i += LANES)
            for (int64_t r = 0; r < STREAMS; r++) sum[r] += get_lanes(rows[r], i, half) * get_lanes(x, i, 0);
        for (int64_t r = 0; r < STREAMS && j + r * apart < n; r++) {
            float total = total_of(sum[r]);
            for (int64_t rest = i; rest < k; rest++) total += get(rows[r], rest, half) * x[rest];
            put(y, j + r * apart, total + (bias ? get(bias, j + r * apart, half) : 0), half);
        }
    }
}

static float *in_fp32(const void *x, int64_t count) {
    float *wide = malloc(sizeof(float) * count);
    for (int64_t i = 0; wide && i < count; i++) wide[i] = get(x, i, 1);
    return wide;
}

// Computes y [m, n] = x [m, k] W^T + bias [n] (bias may be null). Returns 0, or 1 if out of memory.
int few_linear(const void *x, const void *w, const void *bias, void *y, int64_t m, int64_t n, int64_t k, int half) {
    if (!half && m == 1) return product_of_one(x, w, bias, y, n, k, 0), 0;
    if (!half) return product(x, w, bias, y, m, n, k, 0), 0;
    float *wide = in_fp32(x, m * k);
    if (!wide) return 1;
    if (m == 1) product_of_one(wide, w, bias, y, n, k, 1);
    else product(wide, w, bias, y, m, n, k, 1);
    free(wide);
    return 0;
}

// Computes y [m, k] = w * x / sqrt(mean(x^2) + eps) for each row.
void few_rms_norm(const void *x, const void *w, void *y, int64_t m, int64_t k, float eps, int half) {
    for (int64_t r = 0; r < m; r++) {
        const void *row = row_of(x, r, k, half);
        float square = 0;
        for (int64_t i = 0; i < k; i++) square += get(row, i, half) * get(row, i, half);
        float inverse = 1 / sqrtf(square / k + eps);
        for (int64_t i = 0; i < k; i++) put(y, r * k + i, get(row, i, half) * inverse * get(w, i, half), half);
    }
}

// Computes y [m, k] = w * (x - mean) / sqrt(variance + eps) + bias (may be null) for each row.
void few_layer_norm(const void *x, const void *w, const void *bias, void *y, int64_t m, int64_t k, float eps, int half) {
    for (int64_t r = 0; r < m; r++) {
        const void *row = row_of(x, r, k, half);
        float mean = 0, square = 0;
        for (int64_t i = 0; i < k; i++) mean += get(row, i, half);
        mean /= k;
        for (int64_t i = 0; i < k; i++) square += (get(row, i, half) - mean) * (get(row, i, half) - mean);
        float inverse = 1 / sqrtf(square / k + eps);
        for (int64_t i = 0; i < k; i++)
            put(y, r * k + i, (get(row, i, half) - mean) * inverse * get(w, i, half) + (bias ? get(bias, i, half) : 0),
                half);
    }
}

typedef struct {
    int64_t expert, first, count;  // an expert and its range of slots in `order`
} share;

// Sorts slots by expert into `order` and returns the number of experts with slots. A slot is a token's k-th expert.
static int64_t by_expert(const int64_t *selected, int64_t slots, int64_t experts, int64_t *order, share *shares) {
    int64_t used = 0, end = 0;
    for (int64_t e = 0; e < experts; e++) {
        int64_t first = end;
        for (int64_t s = 0; s < slots; s++)
            if (selected[s] == e) order[end++] = s;
        if (end > first) shares[used++] = (share){e, first, end - first};
    }
    return used;
}

INLINE void run_experts(const float *rows, const float *weights, const int64_t *order, const share *shares, int64_t used,
                        const void *gate_up, const void *down, float *hidden, float *out, int64_t slots, int64_t f,
                        int64_t d, int half) {
#pragma omp parallel if (used * f * d >= ENOUGH)
    {
        float gate[slots], up[slots];
#pragma omp for schedule(static)
        for (int64_t i = 0; i < used * f; i++) {
            share s = shares[i / f];
            int64_t j = i % f;
            const void *matrix = row_of(gate_up, s.expert * 2 * f, d, half);
            all_dots(rows + s.first * d, row_of(matrix, j, d, half), gate, s.count, d, 1, half);
            all_dots(rows + s.first * d, row_of(matrix, f + j, d, half), up, s.count, d, 1, half);
            for (int64_t r = 0; r < s.count; r++)
                hidden[(s.first + r) * f + j] = gate[r] / (1 + expf(-gate[r])) * up[r] * weights[order[s.first + r]];
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < used * d; i++) {
            share s = shares[i / d];
            int64_t j = i % d;
            const void *row = row_of(row_of(down, s.expert * d, f, half), j, f, half);
            all_dots(hidden + s.first * f, row, out + s.first * d + j, s.count, f, d, half);
        }
    }
}

// Computes y [m, d]: for each token, the sum of its `top` SwiGLU experts' outputs times their weights [m, top] in fp32.
// gate_up is [experts, 2 f, d] with the gate first; down is [experts, d, f]. Returns 0, or 1 if out of memory.
int few_experts(const void *x, const float *weights, const int64_t *selected, const void *gate_up, const void *down,
                void *y, int64_t m, int64_t top, int64_t experts, int64_t f, int64_t d, int half) {
    int64_t slots = m * top;
    int64_t *order = malloc(sizeof(int64_t) * slots);
    share *shares = malloc(sizeof(share) * slots);
    float *rows = malloc(sizeof(float) * slots * (2 * d + f));
    int failed = !order || !shares || !rows;
    if (!failed) {
        float *out = rows + slots * d, *hidden = out + slots * d;
        int64_t used = by_expert(selected, slots, experts, order, shares);
        for (int64_t s = 0; s < slots; s++)
            for (int64_t i = 0; i < d; i++) rows[s * d + i] = get(x, order[s] / top * d + i, half);
        if (half) run_experts(rows, weights, order, shares, used, gate_up, down, hidden, out, slots, f, d, 1);
        else run_experts(rows, weights, order, shares, used, gate_up, down, hidden, out, slots, f, d, 0);
        // Reuse the memory of the rows for the fp32 sums. A token's experts are added in the order of their ids.
        memset(rows, 0, sizeof(float) * m * d);
        for (int64_t s = 0; s < slots; s++)
            for (int64_t i = 0; i < d; i++) rows[order[s] / top * d + i] += out[s * d + i];
        for (int64_t i = 0; i < m * d; i++) put(y, i, rows[i], half);
    }
    free(order), free(shares), free(rows);
    return failed;
}

// to[i] += factor * from[i] for i < k.
INLINE void add_times(float *to, const void *from, float factor, int64_t k, int half) {
    int64_t i = 0;
    for (; i + LANES <= k; i += LANES) *(lanes *)(to + i) += factor * get_lanes(from, i, half);
    for (; i < k; i++) to[i] += factor * get(from, i, half);
}

// Attention of one head of one token: its query [p + r] against `visible` entries of [c + r]. `expansion` [p + z, c] is
// the head's projection from latents to keys and values. `room` has space for c + r + c + visible numbers.
INLINE void attend(const void *query, const void *entries, const void *expansion, void *out, int64_t visible, int64_t p,
                   int64_t r, int64_t z, int64_t c, float scale, float *room, int half) {
    float *absorbed = room, *latent = room + c + r, *weight = latent + c, largest = -INFINITY, sum = 0;
    memset(absorbed, 0, sizeof(float) * (c + r + c));
    for (int64_t i = 0; i < p; i++) add_times(absorbed, row_of(expansion, i, c, half), get(query, i, half), c, half);
    for (int64_t i = 0; i < r; i++) absorbed[c + i] = get(query, p + i, half);
    for (int64_t l = 0; l < visible; l++) {
        dots(absorbed, row_of(entries, l, c + r, half), weight + l, 1, c + r, 1, half);
        weight[l] *= scale;
        if (weight[l] > largest) largest = weight[l];
    }
    for (int64_t l = 0; l < visible; l++) sum += weight[l] = expf(weight[l] - largest);
    for (int64_t l = 0; l < visible; l++) add_times(latent, row_of(entries, l, c + r, half), weight[l] / sum, c, half);
    for (int64_t i = 0; i < z; i++) {
        float value;
        dots(latent, row_of(expansion, p + i, c, half), &value, 1, c, 1, half);
        put(out, i, value, half);
    }
}

// Computes out [b, t, n, z]: each token's attention to the cached entries of its sample. The inputs are q
// [b, n, t, p + r]; entries [b, .., c + r], where `apart` is the stride between samples; expansion [n, p + z, c]; and
// visible [b, t], how many of the first entries a token attends to. Returns 0, or 1 if out of memory.
int few_attention(const void *q, const void *entries, const void *expansion, const int64_t *visible, void *out,
                  int64_t b, int64_t n, int64_t t, int64_t p, int64_t r, int64_t z, int64_t c, int64_t apart, float scale,
                  int half) {
    int64_t most = 0, failed = 0;
    for (int64_t i = 0; i < b * t; i++) most = visible[i] > most ? visible[i] : most;
#pragma omp parallel if (b * n * t * most * c >= ENOUGH) reduction(| : failed)
    {
        float *room = malloc(sizeof(float) * (2 * c + r + most));
        failed |= !room;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < b * n * t; i++) {
            int64_t sample = i / (n * t), head = i / t % n, token = sample * t + i % t;
            const void *query = row_of(q, i, p + r, half), *cached = row_of(entries, sample, apart, half);
            const void *matrix = row_of(expansion, head, (p + z) * c, half);
            void *to = (char *)out + (token * n + head) * z * (half ? 2 : 4);
            if (!room) continue;
            if (half) attend(query, cached, matrix, to, visible[token], p, r, z, c, scale, room, 1);
            else attend(query, cached, matrix, to, visible[token], p, r, z, c, scale, room, 0);
        }
        free(room);
    }
    return failed;
}

// Attention of one head of one token: its query [h] against entries `first` .. `visible` - 1, each a key and a value
// [2 h]. Scores fall by `slope` per position of distance. `room` has space for 2 h + visible numbers.
INLINE void attend_head(const void *query, const void *entries, void *out, int64_t first, int64_t visible, int64_t h,
                        float scale, float slope, float *room, int half) {
    float *wide = room, *sum = room + h, *weight = room + 2 * h, largest = -INFINITY, all = 0;
    for (int64_t i = 0; i < h; i++) wide[i] = get(query, i, half) * scale;
    memset(sum, 0, sizeof(float) * h);
    for (int64_t l = first; l < visible; l++) {
        dots(wide, row_of(entries, l, 2 * h, half), weight + l, 1, h, 1, half);
        weight[l] -= slope * (visible - 1 - l);
        if (weight[l] > largest) largest = weight[l];
    }
    for (int64_t l = first; l < visible; l++) all += weight[l] = expf(weight[l] - largest);
    for (int64_t l = first; l < visible; l++)
        add_times(sum, row_of(row_of(entries, l, 2 * h, half), 1, h, half), weight[l] / all, h, half);
    for (int64_t i = 0; i < h; i++) put(out, i, sum[i], half);
}

// Computes out [b, t, n, h]: each token's attention to the cached entries of its sample. The inputs are q [b, n, t, h];
// entries [b, n, .., 2 h], where `samples_apart` and `heads_apart` are strides; visible [b, t], the number of entries
// up to and including a token's own, of which it attends to the last `window` (0 for all); and slopes [n], which may
// be null. Returns 0, or 1 if out of memory.
int few_heads(const void *q, const void *entries, const int64_t *visible, const float *slopes, void *out, int64_t b,
              int64_t n, int64_t t, int64_t h, int64_t samples_apart, int64_t heads_apart, int64_t window, float scale,
              int half) {
    int64_t most = 0, failed = 0;
    for (int64_t i = 0; i < b * t; i++) most = visible[i] > most ? visible[i] : most;
#pragma omp parallel if (b * n * t * most * h >= ENOUGH) reduction(| : failed)
    {
        float *room = malloc(sizeof(float) * (2 * h + most));
        failed |= !room;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < b * n * t; i++) {
            int64_t sample = i / (n * t), head = i / t % n, token = sample * t + i % t;
            const void *cached = row_of(row_of(entries, sample, samples_apart, half), head, heads_apart, half);
            int64_t first = window && visible[token] > window ? visible[token] - window : 0;
            float slope = slopes ? slopes[head] : 0;
            void *to = (char *)out + (token * n + head) * h * (half ? 2 : 4);
            if (!room) continue;
            if (half) attend_head(row_of(q, i, h, 1), cached, to, first, visible[token], h, scale, slope, room, 1);
            else attend_head(row_of(q, i, h, 0), cached, to, first, visible[token], h, scale, slope, room, 0);
        }
        free(room);
    }
    return failed;
}

// Loads elements i .. i + count - 1; the remaining lanes are 0.
INLINE lanes get_some(const void *from, int64_t i, int64_t count, int half) {
    if (count == LANES) return get_lanes(from, i, half);
    lanes some = {0};
    for (int64_t lane = 0; lane < count; lane++) some[lane] = get(from, i + lane, half);
    return some;
}

INLINE void put_some(void *to, int64_t i, int64_t count, lanes x, int half) {
    if (count < LANES)
        for (int64_t lane = 0; lane < count; lane++) put(to, i + lane, x[lane], half);
    else if (!half) *(lanes *)((float *)to + i) = x;
    else {  // as in `narrowed`
        bits wide = (bits)x, rounded = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
        bits none = (bits)((wide & 0x7fffffff) > 0x7f800000);
        *(halves *)((uint16_t *)to + i) = __builtin_convertvector((none & ((wide >> 16) | 64)) | (~none & rounded), halves);
    }
}

INLINE lanes chosen(bits where, lanes yes, lanes no) { return (lanes)((where & (bits)yes) | (~where & (bits)no)); }

// Returns e^x, accurate to one or two units in the last place. Below -87 this is the value at -87; above 88, infinity.
INLINE lanes exponentials(lanes x) {
    typedef int32_t integers __attribute__((vector_size(4 * LANES)));
    static const float taylor[] = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 1.0f / 2, 1, 1};
    const float to_whole = 3 << 22;  // adding and subtracting this rounds to an integer
    bits beyond = (bits)(x > 88);
    x = chosen((bits)(x < -87), (lanes){0} - 87, x);
    lanes power = (x * 1.44269504f + to_whole) - to_whole;
    lanes rest = x - power * 0.693359375f + power * 2.12194440e-4f, sum = {0};  // ln 2 in two parts
    for (int i = 0; i < 8; i++) sum = sum * rest + taylor[i];
    lanes out = (lanes)((integers)sum + (__builtin_convertvector(power, integers) << 23));
    return chosen(beyond, (lanes){0} + INFINITY, out);
}

INLINE void swiglu_rows(const void *gate, const void *up, const float *weights, void *out, int64_t m, int64_t f,
                        int64_t apart, int half) {
#pragma omp parallel for schedule(static) if (m * f >= ENOUGH)
    for (int64_t r = 0; r < m; r++) {
        const void *g = row_of(gate, r, apart, half), *u = row_of(up, r, apart, half);
        for (int64_t i = 0; i < f; i += LANES) {
            int64_t count = f - i < LANES ? f - i : LANES;
            lanes x = get_some(g, i, count, half), y = get_some(u, i, count, half);
            lanes hidden = x / (1 + exponentials(-x)) * y * (weights ? weights[r] : 1);
            put_some((char *)out + r * f * (half ? 2 : 4), i, count, hidden, half);
        }
    }
}

// Computes out [m, f] = silu(gate) * up * weight. `apart` is the row stride of gate and up. weights [m]: fp32, or null.
void swiglu(const void *gate, const void *up, const float *weights, void *out, int64_t m, int64_t f, int64_t apart,
            int half) {
    if (half) swiglu_rows(gate, up, weights, out, m, f, apart, 1);
    else swiglu_rows(gate, up, weights, out, m, f, apart, 0);
}

INLINE void swiglu_rows_backward(const void *gate, const void *up, const float *weights, const void *upstream,
                                 void *dgate, void *dup, void *out, float *dweights, int64_t m, int64_t f,
                                 int64_t apart, int64_t dapart, int half) {
#pragma omp parallel for schedule(static) if (m * f >= ENOUGH)
    for (int64_t r = 0; r < m; r++) {
        const void *g = row_of(gate, r, apart, half), *u = row_of(up, r, apart, half), *d = row_of(upstream, r, f, half);
        char *dg = (char *)row_of(dgate, r, dapart, half), *du = (char *)row_of(dup, r, dapart, half);
        float weight = weights ? weights[r] : 1;
        lanes sum = {0};
        for (int64_t i = 0; i < f; i += LANES) {
            int64_t count = f - i < LANES ? f - i : LANES;
            lanes x = get_some(g, i, count, half), y = get_some(u, i, count, half), dy = get_some(d, i, count, half);
            lanes sigmoid = 1 / (1 + exponentials(-x)), silu = x * sigmoid, hidden = silu * y;
            sum += hidden * dy;
            if (out) put_some((char *)row_of(out, r, f, half), i, count, hidden * weight, half);
            put_some(dg, i, count, dy * weight * y * sigmoid * (1 + x * (1 - sigmoid)), half);
            put_some(du, i, count, dy * weight * silu, half);
        }
        if (dweights) dweights[r] = total_of(sum);
    }
}

// Computes the gradients of gate and up (with row stride `dapart`) from `upstream`, the gradient of `out` above. Also
// computes `out` again and the gradient of the weights, each unless its pointer is null.
void swiglu_backward(const void *gate, const void *up, const float *weights, const void *upstream, void *dgate,
                     void *dup, void *out, float *dweights, int64_t m, int64_t f, int64_t apart, int64_t dapart,
                     int half) {
    if (half) swiglu_rows_backward(gate, up, weights, upstream, dgate, dup, out, dweights, m, f, apart, dapart, 1);
    else swiglu_rows_backward(gate, up, weights, upstream, dgate, dup, out, dweights, m, f, apart, dapart, 0);
}

// Returns the standard normal CDF at x, and writes the density times sqrt(2 pi). At -|x|, the CDF is that density times
// t times a polynomial in t = 1 / (1 + 0.26 |x|), fitted for |x| < 14 (relative error 3e-8).
INLINE lanes normal_up_to(lanes x, lanes *density) {
    static const float fitted[] = {0.0305047896f, -0.152828461f, 0.251490753f,  -0.150948603f, 0.160947783f,
                                   0.0510276383f, 0.103030284f,  0.103016744f, 0.10375906f};
    lanes t = 1 / (1 + 0.26f * (lanes)((bits)x & 0x7fffffff)), sum = {0};
    for (int i = 0; i < 9; i++) sum = sum * t + fitted[i];
    *density = exponentials(-0.5f * x * x);
    lanes beyond = *density * t * sum;
    return chosen((bits)(x < 0), beyond, 1 - beyond);
}

// Returns GELU or, with `tanh`, its approximation: both are x times a factor. Writes the derivative to `slope`.
INLINE lanes gelu_of(lanes x, lanes *slope, int tanh) {
    if (!tanh) {
        lanes density, share = normal_up_to(x, &density);
        *slope = share + x * density * 0.3989422804f;
        return x * share;
    }
    // (1 + tanh(u / 2)) / 2 is the sigmoid of u.
    const float twice = 1.595769122f, cubic = 0.044715f;
    lanes u = twice * (x + cubic * x * x * x), falling = exponentials(-(lanes)((bits)u & 0x7fffffff));
    lanes more = 1 / (1 + falling), less = falling * more, share = chosen((bits)(u < 0), less, more);
    *slope = share + x * more * less * twice * (1 + 3 * cubic * x * x);
    return x * share;
}

enum { PIECE = 4096 };

INLINE void gelu_pieces(const void *x, const void *upstream, void *out, int64_t k, int tanh, int half) {
#pragma omp parallel for schedule(static) if (k >= ENOUGH)
    for (int64_t first = 0; first < k; first += PIECE) {
        int64_t end = first + PIECE < k ? first + PIECE : k;
        for (int64_t i = first; i < end; i += LANES) {
            int64_t count = end - i < LANES ? end - i : LANES;
            lanes slope, y = gelu_of(get_some(x, i, count, half), &slope, tanh);
            put_some(out, i, count, upstream ? slope * get_some(upstream, i, count, half) : y, half);
        }
    }
}

// Computes out [k] = gelu(x) or, if `upstream` (the gradient of gelu(x)) is not null, the gradient of x.
void gelu(const void *x, const void *upstream, void *out, int64_t k, int tanh, int half) {
    if (tanh && half) gelu_pieces(x, upstream, out, k, 1, 1);
    else if (tanh) gelu_pieces(x, upstream, out, k, 1, 0);
    else if (half) gelu_pieces(x, upstream, out, k, 0, 1);
    else gelu_pieces(x, upstream, out, k, 0, 0);
}

INLINE void softmax_row(void *row, int64_t target, float *sum, float *loss, int64_t v, int half) {
    lanes high = (lanes){0} - INFINITY, total = {0};
    float largest = -INFINITY, of_target = get(row, target, half);
    int64_t full = v - v % LANES;
    for (int64_t i = 0; i < full; i += LANES) {
        lanes x = get_lanes(row, i, half);
        high = chosen((bits)(x > high), x, high);
    }
    for (int lane = 0; lane < LANES; lane++) largest = high[lane] > largest ? high[lane] : largest;
    for (int64_t i = full; i < v; i++) largest = get(row, i, half) > largest ? get(row, i, half) : largest;
    for (int64_t i = 0; i < v; i += LANES) {
        int64_t count = v - i < LANES ? v - i : LANES;
        lanes e = exponentials(get_some(row, i, count, half) - largest);
        for (int64_t lane = count; lane < LANES; lane++) e[lane] = 0;
        total += e;
        put_some(row, i, count, e, half);
    }
    *sum = total_of(total);
    *loss = logf(*sum) + largest - of_target;
    put(row, target, expf(of_target - largest) - *sum, half);
}

// Replaces logits [m, v] with exp(logits - row maximum), and subtracts the row's sum at its target. Also writes the
// `sums` [m] of the exponentials and the `losses` [m] in nats. The new logits divided by the sums are the gradients of
// the losses.
void softmax_loss(void *logits, const int64_t *targets, float *sums, float *losses, int64_t m, int64_t v, int half) {
#pragma omp parallel for schedule(static) if (m * v >= ENOUGH)
    for (int64_t r = 0; r < m; r++) {
        void *row = (void *)row_of(logits, r, v, half);
        if (half) softmax_row(row, targets[r], sums + r, losses + r, v, 1);
        else softmax_row(row, targets[r], sums + r, losses + r, v, 0);
    }
}
