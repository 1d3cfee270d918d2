/* Memory, text and the clock: the little that a libc would have given. */
#include <linux/mman.h>
#include <linux/time.h>

#include "init.h"
#include "sys.h"

void *memcpy(void *restrict dst, const void *restrict src, size_t n)
{
	void *ret = dst;

	__asm__ volatile("rep movsb" : "+D"(dst), "+S"(src), "+c"(n) : : "memory");
	return ret;
}

void *memmove(void *dst, const void *src, size_t n)
{
	char *d = dst;
	const char *s = src;

	if (d <= s || d >= s + n)
		return memcpy(dst, src, n);
	while (n--)
		d[n] = s[n];
	return dst;
}

void *memset(void *dst, int c, size_t n)
{
	void *ret = dst;

	__asm__ volatile("rep stosb" : "+D"(dst), "+c"(n) : "a"(c) : "memory");
	return ret;
}

int memcmp(const void *a, const void *b, size_t n)
{
	const unsigned char *x = a, *y = b;

	for (; n; n--, x++, y++)
		if (*x != *y)
			return *x - *y;
	return 0;
}

size_t str_len(const char *s)
{
	size_t n = 0;

	while (s[n])
		n++;
	return n;
}

const char *str_find(const char *s, char c)
{
	for (; *s; s++)
		if (*s == c)
			return s;
	return NULL;
}

struct span span_of(const char *s)
{
	return (struct span){s, str_len(s)};
}

bool span_is(struct span s, struct span other)
{
	return s.len == other.len && !memcmp(s.at, other.at, s.len);
}

/* Takes what stands before the separator off the front of *rest, or all of it. */
struct span span_cut(struct span *rest, char separator)
{
	struct span head = {rest->at, 0};

	while (head.len < rest->len && rest->at[head.len] != separator)
		head.len++;
	rest->at += head.len;
	rest->len -= head.len;
	if (rest->len) {
		rest->at++;
		rest->len--;
	}
	return head;
}

bool span_number(struct span s, uint64_t *value)
{
	uint64_t n = 0;

	if (!s.len)
		return false;
	for (size_t i = 0; i < s.len; i++) {
		unsigned digit = (unsigned char)s.at[i] - '0';

		if (digit > 9 || __builtin_mul_overflow(n, 10, &n) ||
		    __builtin_add_overflow(n, digit, &n))
			return false;
	}
	*value = n;
	return true;
}

/* A text that does not fit is cut: these are messages and paths checked for length before. */
void text_add_span(struct text *t, struct span s)
{
	size_t room = t->size - 1 - t->len;

	if (s.len > room)
		s.len = room;
	memcpy(t->buf + t->len, s.at, s.len);
	t->len += s.len;
	t->buf[t->len] = 0;
}

void text_add(struct text *t, const char *s)
{
	text_add_span(t, span_of(s));
}

void text_add_number(struct text *t, uint64_t n)
{
	char digits[20];
	size_t at = sizeof(digits);

	do {
		digits[--at] = '0' + n % 10;
		n /= 10;
	} while (n);
	text_add_span(t, (struct span){digits + at, sizeof(digits) - at});
}

uint64_t clock_ns(void)
{
	struct sys_time t;

	sys_clock_gettime(CLOCK_BOOTTIME, &t);
	return (uint64_t)t.sec * NSEC_PER_SEC + (uint64_t)t.nsec;
}

/* Zeroed, and never given back: init allocates a few times, before the program starts. */
void *mem_alloc(size_t size)
{
	long addr =
		sys_mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (addr < 0)
		fail_errno(CODE_INTERNAL, "memory", addr);
	return (void *)addr;
}
