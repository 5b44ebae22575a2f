/* python_stack.h: child side: lets the recorder write down the Python stack of a dying process. */
#ifndef ISOLATION_PYTHON_STACK_H
#define ISOLATION_PYTHON_STACK_H

/* Has faulthandler's dump of all threads go to the recorder's descriptor. After
 * recorder_install(); to be called again after each. Where it cannot be, deaths are reported
 * without a Python stack. Raises nothing. */
void python_stack_install(void);

#endif
