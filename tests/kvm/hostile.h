/* The hostile kernel's own machine: ports, memory-mapped registers, random numbers, rings. */
#ifndef HOSTILE_H
#define HOSTILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MMIO_BASE   0xc0001000u
#define MMIO_STRIDE 0x1000u
#define LAPIC	    0xfee00000u
#define PORT_SERIAL 0x3f8
#define PORT_MARK   0x600
#define PORT_RESET  0x604

/* All that a device is told to read or write: our code and the page tables lie below. */
#define ARENA	  0x00800000u
#define RAM_END	  0x04000000u
#define RINGS	  0x00800000u /* a page for each queue's ring */
#define RING(n)	  (RINGS + 0x1000u * (n))
#define RING_SIZE 16u

enum { BLK, VSOCK, RNG, DEVICES };
extern const unsigned queues_of[DEVICES];

static inline void outb(uint16_t port, uint8_t v)
{
	__asm__ volatile("outb %0, %1" : : "a"(v), "d"(port));
}
static inline void outw(uint16_t port, uint16_t v)
{
	__asm__ volatile("outw %0, %1" : : "a"(v), "d"(port));
}
static inline void outl(uint16_t port, uint32_t v)
{
	__asm__ volatile("outl %0, %1" : : "a"(v), "d"(port));
}
static inline uint32_t in(uint16_t port, unsigned size)
{
	uint32_t v = 0;

	if (size == 1)
		__asm__ volatile("inb %1, %b0" : "+a"(v) : "d"(port));
	else if (size == 2)
		__asm__ volatile("inw %1, %w0" : "+a"(v) : "d"(port));
	else
		__asm__ volatile("inl %1, %0" : "+a"(v) : "d"(port));
	return v;
}
static inline void write32(uint64_t at, uint32_t v)
{
	*(volatile uint32_t *)at = v;
}
static inline uint32_t read32(uint64_t at)
{
	return *(volatile uint32_t *)at;
}

/* hostile_machine.c */
void seed(uint64_t value);
uint64_t any(void);
uint32_t below(uint32_t n);
bool one_in(uint32_t n);
uint32_t any_address(void);
void say(const char *text);
void end(const char *text) __attribute__((noreturn));
extern uint64_t resume_at; /* where a fault goes on; 0: it is our end */
extern volatile uint64_t interrupts, faults;
void set_traps(void);
void load_traps(void);
void start_second(void (*what)(void));
void ipi(uint32_t low);

struct desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};
enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };

struct ring {
	volatile struct desc *desc;
	volatile uint16_t *avail, *used;
	uint16_t idx, seen;
};

void device_start(unsigned device, uint64_t features);
void ring_add(struct ring *r, uint16_t head);
void kick(unsigned device, unsigned queue);
extern struct ring rings[DEVICES][3];
static inline uint64_t device_at(unsigned device)
{
	return MMIO_BASE + device * MMIO_STRIDE;
}

/* hostile_vsock.c */
void program_requests(uint32_t count);
void program_unplug(uint32_t count);
void program_liar(uint32_t count);
void program_babble(uint32_t count);
void program_stdout(uint32_t count);
void program_file(uint32_t count);
void program_drip(uint32_t count);

#endif
