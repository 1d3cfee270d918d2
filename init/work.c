/*
 * Work of a known amount, for `pyvmm bench --calibrate`: `work N` takes N thousand steps, each some
 * arithmetic and a read from a table that no first-level cache holds. No libc, no system call but
 * its exit: what disturbs it is the host.
 */
#include <stdint.h>

#include <asm/unistd.h>

#define STEPS 1000
#define TABLE (1 << 17) /* entries: 1 MiB */

void work_main(long *stack);

/* The kernel enters with the stack pointer on argc. */
__asm__(".globl _start\n"
	"_start:\n"
	"	movq %rsp, %rdi\n"
	"	andq $-16, %rsp\n"
	"	call work_main\n"
	"	hlt\n");

static uint64_t table[TABLE];

static void leave(long code)
{
	__asm__ volatile("syscall"
			 :
			 : "a"((long)__NR_exit_group), "D"(code)
			 : "rcx", "r11", "memory");
}

static uint64_t next(uint64_t x) /* xorshift64 (Marsaglia 2003): each step needs the last one */
{
	x ^= x << 13;
	x ^= x >> 7;
	return x ^ x << 17;
}

static uint64_t number(const char *text)
{
	uint64_t value = 0;

	for (; *text >= '0' && *text <= '9'; text++)
		value = value * 10 + (uint64_t)(*text - '0');
	return value;
}

void work_main(long *stack)
{
	uint64_t x = 88172645463325252u, sum = 0, left;

	if (stack[0] != 2)
		leave(2);
	left = number((const char *)stack[2]) * STEPS;
	for (uint64_t n = 0; n < TABLE; n++)
		table[n] = x = next(x);
	while (left--) {
		x = next(x);
		sum += table[x % TABLE];
	}
	table[0] = sum; /* so that the compiler leaves the steps in */
	__asm__ volatile("" : : "r"(&table[0]) : "memory");
	leave(0);
}
