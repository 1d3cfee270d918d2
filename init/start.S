/* The kernel enters here with the stack pointer on argc; init has no use for its arguments. */
	.globl _start
	.type _start, @function
_start:
	xorl %ebp, %ebp
	andq $-16, %rsp
	call init_main
	hlt

	.section .note.GNU-stack, "", @progbits
