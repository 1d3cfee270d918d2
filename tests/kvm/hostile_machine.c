/* What the hostile kernel's programs stand on. The second processor runs beside the first: it has a
 * random sequence of its own, and only the first ends the machine. */
#include "hostile.h"

#define SECOND_START 0x10000u

const unsigned queues_of[DEVICES] = {1, 3, 1};
struct ring rings[DEVICES][3];
volatile uint64_t interrupts, faults;
uint64_t resume_at;
static uint64_t states[2];

static unsigned self(void)
{
	uint32_t sp;

	__asm__("movl %%esp, %0" : "=r"(sp));
	extern uint8_t stack_end[];
	return sp > (uint32_t)(uintptr_t)stack_end;
}

void seed(uint64_t value)
{
	states[0] = value * 0x9e3779b97f4a7c15 | 1;
	states[1] = ~states[0] | 1;
}

/* xorshift64*, Marsaglia 2003 and Vigna 2016 */
uint64_t any(void)
{
	uint64_t *s = &states[self()];

	*s ^= *s >> 12;
	*s ^= *s << 25;
	*s ^= *s >> 27;
	return *s * 0x2545f4914f6cdd1d;
}

uint32_t below(uint32_t n)
{
	return (uint32_t)(((any() >> 32) * n) >> 32);
}

bool one_in(uint32_t n)
{
	return below(n) == 0;
}

/* In the arena, at RAM's end, or where nothing is; never where we live. */
uint32_t any_address(void)
{
	switch (below(8)) {
	case 0:
		return RAM_END - below(64);
	case 1:
		return RAM_END + below(0xffffffff - RAM_END);
	case 2:
		return MMIO_BASE + below(8 * MMIO_STRIDE);
	case 3:
		return RINGS + below(0x10000);
	default:
		return ARENA + (below(RAM_END - ARENA) & ~15u);
	}
}

void say(const char *text)
{
	while (*text)
		outb(PORT_SERIAL, (uint8_t)*text++);
}

/* The chip may be in any state: no divisor latch, no loop-back, then the last line that counts. */
void end(const char *text)
{
	outb(PORT_SERIAL + 3, 0);
	outb(PORT_SERIAL + 4, 0);
	say("\n");
	say(text);
	say("\n");
	outb(PORT_RESET, 0);
	for (;;)
		__asm__ volatile("cli; hlt");
}

/* ---- traps ---- */

struct frame {
	uint64_t ip, cs, flags, sp, ss;
};

static void fault(struct frame *f)
{
	faults++;
	if (!resume_at)
		end("fault");
	f->ip = resume_at;
}

__attribute__((interrupt)) static void trap(struct frame *f)
{
	fault(f);
}

__attribute__((interrupt)) static void trap_with_code(struct frame *f, uint64_t code)
{
	(void)code;
	fault(f);
}

__attribute__((interrupt)) static void nmi(struct frame *f)
{
	(void)f;
	interrupts++;
}

__attribute__((interrupt)) static void interrupt(struct frame *f)
{
	(void)f;
	interrupts++;
	write32(LAPIC + 0xb0, 0);
}

static struct {
	uint16_t low, selector;
	uint8_t ist, type;
	uint16_t middle;
	uint32_t high, zero;
} idt[256];

void load_traps(void)
{
	const struct {
		uint16_t limit;
		uint64_t base;
	} __attribute__((packed)) pointer = {sizeof(idt) - 1, (uintptr_t)idt};

	__asm__ volatile("lidt %0" : : "m"(pointer));
}

void set_traps(void)
{
	const uint32_t with_code =
		0x60227d00; /* SDM 3A §6.15: #DF, #TS … #PF, #AC, #CP, #VC, #SX */

	for (unsigned i = 0; i < 256; i++) {
		uintptr_t at = (uintptr_t)interrupt;

		if (i < 32)
			at = with_code >> i & 1 ? (uintptr_t)trap_with_code : (uintptr_t)trap;
		if (i == 2)
			at = (uintptr_t)nmi;
		idt[i].low = (uint16_t)at;
		idt[i].middle = (uint16_t)(at >> 16);
		idt[i].high = (uint32_t)(at >> 32);
		idt[i].selector = 8;
		idt[i].type = 0x8e;
	}
	load_traps();
}

/* ---- the second processor ---- */

static void (*second_does)(void);
static volatile bool second_is_up;

void second_main(void)
{
	load_traps();
	second_is_up = true;
	second_does();
}

/* Write the interrupt command register's low half (SDM 3A §10.6.1). */
void ipi(uint32_t low)
{
	write32(LAPIC + 0x310, 1u << 24);
	write32(LAPIC + 0x300, low);
}

void start_second(void (*what)(void))
{
	extern const uint8_t trampoline[], trampoline_end[];
	volatile uint8_t *to = (uint8_t *)(uintptr_t)SECOND_START;

	second_does = what;
	for (const uint8_t *from = trampoline; from < trampoline_end;)
		*to++ = *from++;
	write32(LAPIC + 0xf0, 0x1ff);
	ipi(0x4500);
	ipi(0x4600 | SECOND_START >> 12);
	while (!second_is_up)
		__asm__ volatile("pause");
}

/* ---- virtio-mmio (Virtio 1.2 §4.2), as a driver should do it ---- */

static void queue_start(unsigned device, unsigned queue)
{
	uint64_t at = device_at(device);
	uint32_t page = RING(device * 3 + queue);
	struct ring *r = &rings[device][queue];

	for (uint32_t i = 0; i < 0x400; i += 8)
		*(volatile uint64_t *)(uintptr_t)(page + i) = 0;
	*r = (struct ring){(void *)(uintptr_t)page, (void *)(uintptr_t)(page + 0x100),
			   (void *)(uintptr_t)(page + 0x200), 0, 0};
	write32(at + 0x30, queue);
	write32(at + 0x38, RING_SIZE);
	write32(at + 0x80, page);
	write32(at + 0x84, 0);
	write32(at + 0x90, page + 0x100);
	write32(at + 0x94, 0);
	write32(at + 0xa0, page + 0x200);
	write32(at + 0xa4, 0);
	write32(at + 0x44, 1);
}

void device_start(unsigned device, uint64_t features)
{
	uint64_t at = device_at(device);

	write32(at + 0x70, 0);
	write32(at + 0x70, 3);
	for (uint32_t half = 0; half < 2; half++) {
		write32(at + 0x24, half);
		write32(at + 0x20, (uint32_t)((features | 1ull << 32) >> 32 * half));
	}
	write32(at + 0x70, 11);
	for (unsigned queue = 0; queue < queues_of[device]; queue++)
		queue_start(device, queue);
	write32(at + 0x70, 15);
}

void ring_add(struct ring *r, uint16_t head)
{
	r->avail[2 + r->idx % RING_SIZE] = head;
	r->idx++;
	r->avail[1] = r->idx;
}

void kick(unsigned device, unsigned queue)
{
	write32(device_at(device) + 0x50, queue);
}
