/* Uses eplb, and the second library where SECOND_LIBRARY is defined; 0 if all went well. */
int use_eplb(void);
