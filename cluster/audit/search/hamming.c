/* Exact range search in 256-bit codes, called through hamming.py.
 *
 * A code is four 64-bit words. A folded search finds mirrored pictures, too: its words are the parity classes of the sign
 * hash (hamming.parity_words), a flip complements whole words, and the distance is the least over the four flips, so one
 * comparison serves them all. Both searches report each pair within the radius at least once, and no other pair.
 */

#include <stdint.h>

#define WORDS 4
#define TILE 1024  /* codes of the index that stay in the first cache, 32 kB */
#define GROUP 256  /* codes that one call of the sieve decides on */
#define CHUNKS 16  /* of 16 bits: a pair within 31 bits has one chunk at most 1 bit apart */
#define BUCKETS 65536
#define BLOCK 4096 /* queries that go through one chunk's table while it is in the second cache */

/* x86-64 counts bits in one instruction since 2008, in vectors since 2019; the first is assumed, and the processor
 * is asked for the second. */
#ifdef __x86_64__
#define COUNTS __attribute__((target("popcnt")))
#define COUNTS_VECTORS __attribute__((target("avx512f,avx512vpopcntdq")))
#define HAS_VECTOR_COUNTS __builtin_cpu_supports("avx512vpopcntdq")
#else
#define COUNTS
#define COUNTS_VECTORS
#define HAS_VECTOR_COUNTS 0
#endif

typedef struct {
    int64_t *pairs; /* query and code of the index, in turn */
    int64_t capacity, count;
} Found;

static void keep(Found *found, int64_t query, int64_t code)
{
    if (found->count < found->capacity) {
        found->pairs[2 * found->count] = query;
        found->pairs[2 * found->count + 1] = code;
    }
    found->count++;
}

#define LEAST(one, other) ((one) < (other) ? (one) : (other))

/* Words: both frequencies even, horizontal odd, vertical odd, both odd. A flip complements two of the last three. */
#define DISTANCE(d, folded) \
    ((folded) ? d[0] + LEAST(LEAST(d[1] + d[2] + d[3], 128 - d[1] + d[2] - d[3]), \
                             LEAST(128 + d[1] - d[2] - d[3], 128 - d[1] - d[2] + d[3])) \
              : d[0] + d[1] + d[2] + d[3])

/* Returns whether a code of a group may be within the radius, by a lower bound of the distance from its first words. */
#define SIEVE(name, target, num_words, folded) \
    target static int name(const uint64_t *planes, const uint64_t *query, int64_t radius) \
    { \
        int64_t closest = 256; \
        for (int i = 0; i < GROUP; i++) { \
            int64_t bound = __builtin_popcountll(planes[i] ^ query[0]); \
            for (int w = 1; w < num_words; w++) { \
                int64_t d = __builtin_popcountll(planes[w * TILE + i] ^ query[w]); \
                bound += folded ? LEAST(d, 64 - d) : d; \
            } \
            closest = LEAST(bound, closest); \
        } \
        return closest <= radius; \
    }
SIEVE(three, COUNTS, 3, 0)
SIEVE(four, COUNTS, 4, 0)
SIEVE(three_folded, COUNTS, 3, 1)
SIEVE(four_folded, COUNTS, 4, 1)
SIEVE(three_vector, COUNTS_VECTORS, 3, 0)
SIEVE(four_vector, COUNTS_VECTORS, 4, 0)
SIEVE(three_folded_vector, COUNTS_VECTORS, 3, 1)
SIEVE(four_folded_vector, COUNTS_VECTORS, 4, 1)

/* By vectors or not, from 70 bits or not, folded or not. Three words nearly always suffice below 70 bits; the bound
 * from three is no higher than the distance, so no pair is lost. */
static int (*const SIEVES[2][2][2])(const uint64_t *, const uint64_t *, int64_t) = {
    {{three, three_folded}, {four, four_folded}},
    {{three_vector, three_folded_vector}, {four_vector, four_folded_vector}},
};

COUNTS static void compare(const uint64_t *planes, int64_t num, const uint64_t *query, int64_t radius, int folded, int64_t number,
                 int64_t first, Found *found)
{
    for (int64_t i = 0; i < num; i++) {
        int d[WORDS];
        for (int w = 0; w < WORDS; w++)
            d[w] = __builtin_popcountll(planes[w * TILE + i] ^ query[w]);
        if (DISTANCE(d, folded) <= radius)
            keep(found, number, first + i);
    }
}

/* Compares every query with every code. planes: tiles of WORDS x TILE words, the last one padded with anything. */
int64_t bit_scan(const uint64_t *planes, int64_t num_codes, const uint64_t *queries, int64_t num_queries, int radius,
                 int folded, int64_t *pairs, int64_t capacity)
{
    Found found = {pairs, capacity, 0};
    int (*sieve)(const uint64_t *, const uint64_t *, int64_t) = SIEVES[HAS_VECTOR_COUNTS != 0][radius >= 70][folded != 0];
    for (int64_t start = 0; start < num_codes; start += TILE)
        for (int64_t q = 0; q < num_queries; q++)
            for (int64_t i = 0; i < TILE && start + i < num_codes; i += GROUP) {
                const uint64_t *group = planes + start * WORDS + i;
                int64_t left = num_codes - start - i;
                if (sieve(group, queries + WORDS * q, radius))
                    compare(group, LEAST(left, GROUP), queries + WORDS * q, radius, folded, q, start + i, &found);
            }
    return found.count;
}

/* Key of a chunk: its bits, or, in words that a flip complements, the smaller of them and their complement. */
static inline uint16_t key_of(uint16_t chunk, int folded)
{
    uint16_t complement = (uint16_t)~chunk;
    return folded ? LEAST(chunk, complement) : chunk;
}

/* Looks up each chunk of a query, and it with each bit flipped. starts: CHUNKS x (BUCKETS + 1), ids: CHUNKS x num_codes; exact
 * up to radius 31: 16 chunks that are each 2 bits apart or more make 32. */
COUNTS
int64_t bit_probe(const uint64_t *codes, int64_t num_codes, const int32_t *starts, const int32_t *ids,
                  const uint64_t *queries, int64_t num_queries, int radius, int folded, int64_t *pairs, int64_t capacity)
{
    Found found = {pairs, capacity, 0};
    for (int64_t block = 0; block < num_queries; block += BLOCK)
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
            const int32_t *start = starts + (int64_t)chunk * (BUCKETS + 1), *id = ids + chunk * num_codes;
            int mirrors = folded && chunk / 4 > 0;
            for (int64_t q = block; q < num_queries && q < block + BLOCK; q++) {
                const uint64_t *query = queries + WORDS * q;
                uint16_t own = (uint16_t)(query[chunk / 4] >> (16 * (chunk % 4)));
                for (int bit = 0; bit <= 16; bit++) {
                    uint16_t key = key_of((uint16_t)(own ^ (bit < 16 ? 1 << bit : 0)), mirrors);
                    for (int32_t i = start[key]; i < start[key + 1]; i++) {
                        const uint64_t *code = codes + WORDS * (int64_t)id[i];
                        int d[WORDS];
                        for (int w = 0; w < WORDS; w++)
                            d[w] = __builtin_popcountll(code[w] ^ query[w]);
                        if (DISTANCE(d, folded) <= radius)
                            keep(&found, q, id[i]);
                    }
                }
            }
        }
    return found.count;
}
