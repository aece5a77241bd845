/* A cache of the ids of words, for the bytes of a column of text.
 *
 * A text is cut into words between two characters whose kinds are not adjacent in any piece of the vocabulary. No merge
 * of byte-pair encoding crosses such a boundary, so the ids of the text are those of its words. scan() copies the ids of
 * known words and lists the others, once each; resolve() gets their ids; take() returns all ids. Only one thread at a
 * time may use a cache. A negative result means that memory ran out.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Kinds of characters; tokenizer/word_cache.py has the same list. */
enum { LETTER, DIGIT, SPACE, NEWLINE, OTHER, QUOTE, WIDE, MARK, KINDS };

enum {
    INLINE_KEY = 16,  /* longest word that is stored in its slot */
    INLINE_IDS = 2,   /* maximum number of ids that are stored in a slot */
    LONGEST = 256,    /* longer words are not cached */
    IDS_A_BYTE = 3,   /* a space without a piece becomes the three bytes of its mark */
    FIRST_SLOTS = 1024,
    OUT_OF_MEMORY = -1,
    WRONG_ANSWER = -2
};
#define PENDING UINT32_MAX

/* length 0: the slot is free. Words longer than INLINE_KEY have their hash in low and their offset in `keys` in high.
 * More than INLINE_IDS ids begin at ids[0] in `kept`. With count PENDING, ids[0] is the word's index in `wanted`. */
typedef struct {
    uint64_t low, high;
    uint32_t length, count;
    uint32_t ids[INLINE_IDS];
} Slot;

typedef struct { char *data; size_t used, room; } Bytes;

/* A word without ids: its bytes are in `text`, and later its ids in `answers`. */
typedef struct { uint64_t start, first, count, length, kept; } Wanted;

/* Where the ids of a wanted word are inserted: before the known id at `place`. */
typedef struct { uint64_t place, document, wanted; } Hole;

typedef struct {
    Slot *slots;
    size_t mask, words, limit, reserved;
    Bytes keys, kept, known, holes, wanted, text, answers;
    uint8_t kinds[256], joins[KINDS];
    int32_t newline, mark[3];
} Cache;

static void *grown(Bytes *bytes, size_t more) {
    if (bytes->used + more > bytes->room) {
        size_t room = bytes->room ? bytes->room : 4096;
        while (room < bytes->used + more) room *= 2;
        char *data = realloc(bytes->data, room);
        if (!data) return NULL;
        bytes->data = data;
        bytes->room = room;
    }
    void *place = bytes->data + bytes->used;
    bytes->used += more;
    return place;
}

static uint64_t mixed(uint64_t low, uint64_t high, uint64_t length) {
    uint64_t hash = (low ^ length * 0x9E3779B97F4A7C15u) * 0xBF58476D1CE4E5B9u;
    hash ^= hash >> 32;
    hash = (hash ^ high) * 0x94D049BB133111EBu;
    hash ^= hash >> 29;
    hash *= 0xBF58476D1CE4E5B9u;
    return hash ^ hash >> 32;
}

/* The key of a word's slot; `room` bytes can be read from `word`. */
static uint64_t identify(const uint8_t *word, size_t length, size_t room, Slot *key) {
    key->length = (uint32_t)length;
    key->low = key->high = 0;
    if (length > INLINE_KEY) {
        uint64_t hash = length, part;
        for (size_t i = 0; i + 8 <= length; i += 8) {
            memcpy(&part, word + i, 8);
            hash = mixed(hash, part, 8);
        }
        memcpy(&part, word + length - 8, 8);
        return key->low = mixed(hash, part, length);
    }
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    if (room >= INLINE_KEY) {
        memcpy(&key->low, word, 8);
        memcpy(&key->high, word + 8, 8);
        if (length < 8) key->low &= ((uint64_t)1 << 8 * length) - 1;
        if (length <= 8) key->high = 0;
        else if (length < 16) key->high &= ((uint64_t)1 << 8 * (length - 8)) - 1;
        return mixed(key->low, key->high, length);
    }
#endif
    uint8_t copy[INLINE_KEY] = {0};
    memcpy(copy, word, length);
    memcpy(&key->low, copy, 8);
    memcpy(&key->high, copy + 8, 8);
    return mixed(key->low, key->high, length);
}

/* The slot of a word, or the free slot for it. */
static Slot *find(const Cache *cache, const uint8_t *word, const Slot *key, uint64_t hash) {
    for (size_t i = hash & cache->mask;; i = (i + 1) & cache->mask) {
        Slot *slot = cache->slots + i;
        if (!slot->length) return slot;
        if (slot->length != key->length || slot->low != key->low) continue;
        if (key->length <= INLINE_KEY ? slot->high == key->high
                                      : !memcmp(cache->keys.data + slot->high, word, key->length)) return slot;
    }
}

static int enlarge(Cache *cache) {
    size_t count = 2 * (cache->mask + 1);
    Slot *slots = calloc(count, sizeof(Slot)), *old = cache->slots;
    if (!slots) return OUT_OF_MEMORY;
    for (size_t i = 0; i <= cache->mask; i++) {
        if (!old[i].length) continue;
        size_t at = old[i].length > INLINE_KEY ? old[i].low : mixed(old[i].low, old[i].high, old[i].length);
        for (at &= count - 1; slots[at].length;) at = (at + 1) & (count - 1);
        slots[at] = old[i];
    }
    free(old);
    cache->slots = slots;
    cache->mask = count - 1;
    return 0;
}

static size_t size(const Cache *cache, size_t slots) {
    return slots * sizeof(Slot) + cache->keys.used + cache->kept.used + cache->reserved;
}

/* Whether there is room for one more word. Enlarges the table if the limit allows it. */
static int admits(Cache *cache, size_t length) {
    size_t slots = cache->mask + 1, more = length * (1 + IDS_A_BYTE * sizeof(int32_t));
    if (length > LONGEST || size(cache, slots) + more > cache->limit) return 0;
    if (cache->words < slots - slots / 3) return 1;
    if (size(cache, 2 * slots) + more > cache->limit) return 0;
    int failed = enlarge(cache);
    return failed ? failed : 1;
}

/* List a word whose ids are wanted, and give it a slot if there is room. Returns its index in the list. */
static int64_t ask(Cache *cache, const uint8_t *word, Slot key, uint64_t hash) {
    int64_t place = (int64_t)(cache->wanted.used / sizeof(Wanted));
    int keep = place < (int64_t)UINT32_MAX ? admits(cache, key.length) : 0;
    Wanted *wanted = grown(&cache->wanted, sizeof *wanted);
    char *copy = grown(&cache->text, (size_t)key.length + 1);
    if (keep < 0 || !wanted || !copy) return OUT_OF_MEMORY;
    memcpy(copy, word, key.length);
    copy[key.length] = '\n';
    *wanted = (Wanted){(uint64_t)(copy - cache->text.data), 0, 0, key.length, (uint64_t)keep};
    if (!keep) return place;
    if (key.length > INLINE_KEY) {
        char *name = grown(&cache->keys, key.length);
        if (!name) return OUT_OF_MEMORY;
        memcpy(name, word, key.length);
        key.high = (uint64_t)(name - cache->keys.data);
    }
    key.count = PENDING;
    key.ids[0] = (uint32_t)place;
    *find(cache, word, &key, hash) = key;
    cache->words++;
    cache->reserved += key.length * IDS_A_BYTE * sizeof(int32_t);
    return place;
}

/* Set the ids of a word that has a slot. */
static int answer(Cache *cache, const uint8_t *word, size_t length, const int32_t *ids, size_t count) {
    Slot key;
    uint64_t hash = identify(word, length, length, &key);
    Slot *slot = find(cache, word, &key, hash);
    cache->reserved -= length * IDS_A_BYTE * sizeof(int32_t);
    slot->count = (uint32_t)count;
    if (count <= INLINE_IDS) {
        memcpy(slot->ids, ids, count * sizeof *ids);
        return 0;
    }
    int32_t *kept = grown(&cache->kept, count * sizeof *ids);
    if (!kept) return OUT_OF_MEMORY;
    memcpy(kept, ids, count * sizeof *ids);
    slot->ids[0] = (uint32_t)(kept - (int32_t *)cache->kept.data);
    return 0;
}

/* The end of the character at `at`, and its kind. Invalid UTF-8 is some character, without reading out of bounds. */
static inline const uint8_t *character(const Cache *cache, const uint8_t *at, const uint8_t *stop, unsigned *kind) {
    uint8_t first = *at++;
    *kind = cache->kinds[first];
    if (first < 0x80) return at;
    if (first == 0xE2 && stop - at >= 2) {
        if (at[0] == 0x80) *kind = QUOTE;
        if (at[0] == 0x96 && at[1] == 0x81) *kind = MARK;
    }
    for (int more = 0; more < 3 && at < stop && (*at & 0xC0) == 0x80; more++) at++;
    return at;
}

static inline const uint8_t *word_end(const Cache *cache, const uint8_t *at, const uint8_t *stop) {
    unsigned kind, next;
    at = character(cache, at, stop, &kind);
    while (at < stop) {
        const uint8_t *after = character(cache, at, stop, &next);
        if (!(cache->joins[kind] >> next & 1)) break;
        kind = next;
        at = after;
    }
    return at;
}

static inline int put(Cache *cache, const void *ids, size_t count) {
    char *place = grown(&cache->known, count * sizeof(int32_t));
    if (!place) return OUT_OF_MEMORY;
    memcpy(place, ids, count * sizeof(int32_t));
    return 0;
}

/* Append the ids of a word, or record where they will be inserted. */
static inline int add(Cache *cache, const uint8_t *word, size_t length, size_t room, int64_t document) {
    Slot key;
    if (*word == '\n') return put(cache, &cache->newline, 1);
    if (length == 3 && !memcmp(word, "\xE2\x96\x81", 3)) return put(cache, cache->mark, 3);
    uint64_t hash = identify(word, length, room, &key);
    Slot *slot = find(cache, word, &key, hash);
    if (slot->length && slot->count <= INLINE_IDS) {
        /* Copy a fixed number of ids, which is faster, then drop those beyond the count. */
        int failed = put(cache, slot->ids, INLINE_IDS);
        cache->known.used -= (INLINE_IDS - slot->count) * sizeof(int32_t);
        return failed;
    }
    if (slot->length && slot->count != PENDING)
        return put(cache, cache->kept.data + slot->ids[0] * sizeof(int32_t), slot->count);
    int64_t place = slot->length ? slot->ids[0] : ask(cache, word, key, hash);
    Hole *hole = place < 0 ? NULL : grown(&cache->holes, sizeof *hole);
    if (!hole) return OUT_OF_MEMORY;
    *hole = (Hole){cache->known.used / sizeof(int32_t), (uint64_t)document, (uint64_t)place};
    return 0;
}

void word_cache_free(Cache *cache) {
    if (!cache) return;
    Bytes *all[] = {&cache->keys, &cache->kept, &cache->known, &cache->holes, &cache->wanted, &cache->text,
                    &cache->answers};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]->data);
    free(cache->slots);
    free(cache);
}

/* `joins`: for each kind, a bit for each kind that may follow it in a word. `newline`: its id, which is in no other word.
 * `mark`: the three ids of a U+2581 in the text. `limit`: maximum size of the cache in bytes. */
Cache *word_cache_new(const uint8_t *joins, int32_t newline, const int32_t *mark, uint64_t limit) {
    Cache *cache = calloc(1, sizeof *cache);
    if (!cache) return NULL;
    cache->slots = calloc(FIRST_SLOTS, sizeof(Slot));
    cache->mask = FIRST_SLOTS - 1;
    cache->limit = limit < UINT32_MAX ? (size_t)limit : UINT32_MAX;
    memcpy(cache->joins, joins, KINDS);
    memcpy(cache->mark, mark, sizeof cache->mark);
    cache->newline = newline;
    for (int byte = 0; byte < 256; byte++) {
        int letter = (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z');
        cache->kinds[byte] = byte >= 0x80 ? WIDE : letter ? LETTER : OTHER;
        if (byte >= '0' && byte <= '9') cache->kinds[byte] = DIGIT;
    }
    cache->kinds[' '] = SPACE;
    cache->kinds['\n'] = NEWLINE;
    if (cache->slots) return cache;
    word_cache_free(cache);
    return NULL;
}

/* Size of the cache in bytes: the table, long words and their ids. */
int64_t word_cache_size(const Cache *cache) { return (int64_t)size(cache, cache->mask + 1); }

/* Words that are not known, each followed by a newline. The words do not contain newlines. */
const char *word_cache_wanted(const Cache *cache, int64_t *bytes) {
    *bytes = (int64_t)cache->text.used;
    return cache->text.data;
}

/* Look up the words of documents [offsets[i], offsets[i + 1]) of `text`. `end`, unless negative, is appended to each
 * document. Returns the number of known ids; `lengths` gets the number of each document. */
int64_t word_cache_scan(Cache *cache, const uint8_t *text, const int64_t *offsets, int64_t documents, int32_t end,
                        int64_t *lengths) {
    cache->known.used = cache->holes.used = cache->wanted.used = cache->text.used = cache->answers.used = 0;
    const uint8_t *last = text + offsets[documents];
    for (int64_t document = 0; document < documents; document++) {
        const uint8_t *stop = text + offsets[document + 1], *next;
        size_t before = cache->known.used;
        for (const uint8_t *word = text + offsets[document]; word < stop; word = next) {
            next = word_end(cache, word, stop);
            if (add(cache, word, (size_t)(next - word), (size_t)(last - word), document)) return OUT_OF_MEMORY;
        }
        if (end >= 0 && put(cache, &end, 1)) return OUT_OF_MEMORY;
        lengths[document] = (int64_t)((cache->known.used - before) / sizeof end);
    }
    return (int64_t)(cache->known.used / sizeof end);
}

/* Set the ids of the wanted words, each followed by that of the newline. Returns the number of ids of all documents. */
int64_t word_cache_resolve(Cache *cache, const int32_t *ids, int64_t count) {
    char *copy = grown(&cache->answers, (size_t)count * sizeof *ids);
    if (!copy) return OUT_OF_MEMORY;
    memcpy(copy, ids, (size_t)count * sizeof *ids);
    Wanted *wanted = (Wanted *)cache->wanted.data;
    int64_t at = 0, total = (int64_t)(cache->known.used / sizeof *ids);
    for (size_t i = 0; i < cache->wanted.used / sizeof *wanted; i++) {
        int64_t first = at;
        while (at < count && ids[at] != cache->newline) at++;
        if (at == count || at == first) return WRONG_ANSWER;
        wanted[i].first = (uint64_t)first;
        wanted[i].count = (uint64_t)(at - first);
        const uint8_t *word = (const uint8_t *)cache->text.data + wanted[i].start;
        if (wanted[i].kept && wanted[i].count > IDS_A_BYTE * wanted[i].length) return WRONG_ANSWER;
        if (wanted[i].kept && answer(cache, word, wanted[i].length, ids + first, (size_t)(at - first)))
            return OUT_OF_MEMORY;
        at++;
    }
    const Hole *holes = (const Hole *)cache->holes.data;
    for (size_t i = 0; i < cache->holes.used / sizeof *holes; i++) total += (int64_t)wanted[holes[i].wanted].count;
    return at == count ? total : WRONG_ANSWER;
}

/* Copy the ids of all documents to `out`, and complete `lengths`. */
void word_cache_take(const Cache *cache, int32_t *out, int64_t *lengths) {
    const int32_t *known = (const int32_t *)cache->known.data, *answers = (const int32_t *)cache->answers.data;
    const Hole *hole = (const Hole *)cache->holes.data, *last = hole + cache->holes.used / sizeof *hole;
    const Wanted *wanted = (const Wanted *)cache->wanted.data;
    uint64_t from = 0, to = cache->known.used / sizeof *known;
    for (; hole < last; hole++) {
        const Wanted *word = wanted + hole->wanted;
        if (hole->place > from) memcpy(out, known + from, (hole->place - from) * sizeof *out);
        out += hole->place - from;
        memcpy(out, answers + word->first, word->count * sizeof *out);
        out += word->count;
        lengths[hole->document] += (int64_t)word->count;
        from = hole->place;
    }
    if (to > from) memcpy(out, known + from, (to - from) * sizeof *out);
}
