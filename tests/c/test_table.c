/* table.c against a plain array. */
#include <stdlib.h>

#include "check.h"
#include "table.h"

#define KEYS 3000

static void
test_empty(void)
{
    struct table t;
    size_t position = 0;
    uint64_t key;
    void *value;

    table_init(&t);
    CHECK(table_get(&t, 5) == NULL);
    CHECK(table_remove(&t, 5) == NULL);
    CHECK(!table_next(&t, &position, &key, &value));
    table_free(&t);
}

static void
test_replace(void)
{
    struct table t;
    int a, b;

    table_init(&t);
    CHECK(table_put(&t, 1, &a));
    CHECK(table_put(&t, 1, &b));
    CHECK_EQUAL(t.used, 1);
    CHECK(table_get(&t, 1) == &b);
    CHECK(table_remove(&t, 1) == &b);
    CHECK(table_remove(&t, 1) == NULL);
    CHECK_EQUAL(t.used, 0);
    table_free(&t);
    CHECK(table_get(&t, 1) == NULL);
}

/* Random puts and removals; `step` makes keys as handles (1) or addresses (16) are. */
static void
test_against_an_array(uint64_t first, uint64_t step)
{
    static char model[KEYS]; /* 0: absent */
    static char values[256];
    struct table t;
    unsigned seed = 11;
    size_t n = 0;

    memset(model, 0, sizeof model);
    table_init(&t);
    for (int round = 0; round < 60000; round++) {
        size_t i = rand_r(&seed) % KEYS;
        uint64_t key = first + i * step;

        if (rand_r(&seed) % 2) {
            char v = 1 + rand_r(&seed) % 100;

            n += model[i] == 0;
            model[i] = v;
            if (!table_put(&t, key, &values[(int)v]))
                CHECK(!"out of memory");
        }
        else {
            void *was = table_remove(&t, key);

            if (was != (model[i] ? &values[(int)model[i]] : NULL))
                CHECK(!"removed something else");
            n -= model[i] != 0;
            model[i] = 0;
        }
        if (t.used != n)
            CHECK(!"wrong count");
    }
    size_t wrong = 0, seen = 0, position = 0;
    for (size_t i = 0; i < KEYS; i++)
        wrong += table_get(&t, first + i * step) != (model[i] ? &values[(int)model[i]] : NULL);
    CHECK_EQUAL(wrong, 0);
    uint64_t key;
    void *value;
    while (table_next(&t, &position, &key, &value)) {
        size_t i = (key - first) / step;

        wrong += i >= KEYS || model[i] == 0 || value != &values[(int)model[i]];
        seen++;
    }
    CHECK_EQUAL(wrong, 0);
    CHECK_EQUAL(seen, n);
    CHECK((t.mask & (t.mask + 1)) == 0);
    CHECK(t.used * 2 <= t.mask + 1);
    table_free(&t);
}

/* The keys of one table, in the order of its slots, into another that grows: they must not gather.
 */
static void
test_in_the_order_of_another(void)
{
    struct table from, to;
    size_t position = 0, longest = 0;
    uint64_t key;
    void *value;
    int here;

    table_init(&from);
    table_init(&to);
    for (uint64_t i = 1; i <= 20000; i++) {
        CHECK(table_put(&from, i * 64, &here));
    }
    while (table_next(&from, &position, &key, &value)) {
        CHECK(table_put(&to, key, value));
        if (to.used % 500 != 0) {
            continue;
        }
        for (size_t i = 0, run = 0; i <= to.mask; i++) {
            run = to.slots[i].key != 0 ? run + 1 : 0;
            longest = run > longest ? run : longest;
        }
    }
    CHECK_EQUAL(to.used, 20000);
    CHECK(longest < 200);
    table_free(&from);
    table_free(&to);
}

int
main(void)
{
    test_in_the_order_of_another();
    test_empty();
    test_replace();
    test_against_an_array(1, 1);
    test_against_an_array(0x7f0000000010, 16);
    test_against_an_array(UINT64_MAX - KEYS * 4096ull, 4096);
    return check_report();
}
